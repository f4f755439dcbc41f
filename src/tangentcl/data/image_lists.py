"""Images whose splits and classes stand in list files: CUB, Pets and DomainNet as published, and plain lists.

Every path in a list is taken below the folder of the data; one that leads out of it is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from tangentcl.data.assemble import Split, assemble
from tangentcl.data.image_folder import IMAGE_SUFFIXES, ImageEntry, ImageFiles
from tangentcl.data.table import Source
from tangentcl.errors import DataError


def cub(root: Path) -> Source:
    """CUB-200-2011 as published: images.txt, image_class_labels.txt, train_test_split.txt, classes.txt, images/.

    Each line of the first three begins with the number of the image; 1 in train_test_split.txt is training.

    Raises:
        DataError: a file that is missing or not as published, files that differ in their images, a missing image.
    """
    files = ("images.txt", "image_class_labels.txt", "train_test_split.txt")
    paths, labels, training = (_pairs(root / name) for name in files)
    for name, table in zip(files[1:], (labels, training)):
        if set(table) != set(paths):
            odd = sorted(set(table) ^ set(paths))
            raise DataError(f"{root / name} and images.txt differ in {len(odd)} images, such as number {odd[0]}.")
    odd = sorted(set(training.values()) - {"0", "1"})
    if odd:
        raise DataError(f"Expected 0 or 1 for every image in {root / 'train_test_split.txt'}, got {odd[0]!r}.")
    classes = _pairs(root / "classes.txt")
    unknown = sorted(set(labels.values()) - set(classes))
    if unknown:
        raise DataError(
            f"{root / 'image_class_labels.txt'} has the class {unknown[0]}, which classes.txt does not name."
        )
    splits = {}
    for split, flag in (("train", "1"), ("test", "0")):
        chosen = [number for number in paths if training[number] == flag]
        splits[split] = _split(root, [f"images/{paths[n]}" for n in chosen], [classes[labels[n]] for n in chosen])
    return assemble(root.name, "image", splits, class_names=[classes[n] for n in sorted(classes, key=int)])


def pets(root: Path) -> Source:
    """Oxford-IIIT Pets as published: annotations/trainval.txt, annotations/test.txt and images/NAME.jpg.

    A line holds the name of an image, the number of its breed, 1 for a cat or 2 for a dog, and the breed's number
    within these. The breed is the name without its last number; cats and dogs are the groups.

    Raises:
        DataError: a line that is not as published, a missing image.
    """
    splits, species = {}, {}
    for split, name in (("train", "trainval.txt"), ("test", "test.txt")):
        file = root / "annotations" / name
        names = []
        for number, words in _words(file, comment="#"):
            if len(words) != 4 or words[2] not in ("1", "2") or "_" not in words[0]:
                raise DataError(f"Expected 'Breed_1 1 1 1' in line {number} of {file}, got {' '.join(words)!r:.80}.")
            names.append(words[0])
            species[words[0].rpartition("_")[0]] = words[2]
        splits[split] = _split(root, [f"images/{one}.jpg" for one in names], [n.rpartition("_")[0] for n in names])
    groups = {group: sorted(b for b, s in species.items() if s == code) for group, code in (("cat", "1"), ("dog", "2"))}
    return assemble(root.name, "image", splits, groups={name: breeds for name, breeds in groups.items() if breeds})


def domain_lists(root: Path) -> Source:
    """DomainNet as published: lists DOMAIN_train.txt and DOMAIN_test.txt with lines "path label"; one domain per pair.

    The class is the folder of the image; classes are in the order of their labels.

    Raises:
        DataError: a domain with one of the two lists only, a label with two folders, a missing image.
    """
    found = {split: sorted(root.glob(f"*_{split}.txt")) for split in ("train", "test")}
    domains = {split: [file.name.removesuffix(f"_{split}.txt") for file in files] for split, files in found.items()}
    alone = sorted(set(domains["train"]) ^ set(domains["test"]))
    if alone:
        raise DataError(f"Expected {alone[0]}_train.txt and {alone[0]}_test.txt in {root}, but one of them is missing.")
    splits, labels = {}, {}  # type: ignore[var-annotated]
    for split, files in found.items():
        paths, names = [], []
        for domain, file in zip(domains[split], files):
            listed = _listed(file, labels)
            paths += listed
            names += [domain] * len(listed)
        splits[split] = _split(root, paths, [_class_of(path, root) for path in paths], names)
    return assemble(root.name, "image", splits, class_names=_in_label_order(labels))


def lists(root: Path) -> Source:
    """Images by train.txt and test.txt: one path per line, perhaps with a label; the class is the image's folder.

    Raises:
        DataError: a label with two folders, some lines with labels and some without, a missing image.
    """
    labels: dict[str, str] = {}
    read = {split: _listed(root / f"{split}.txt", labels) for split in ("train", "test")}
    splits = {split: _split(root, paths, [_class_of(path, root) for path in paths]) for split, paths in read.items()}
    return assemble(root.name, "image", splits, class_names=_in_label_order(labels) if labels else None)


def coda_lists(root: Path) -> Source:
    """ImageNet-R by CODA-Prompt's imagenet-r_train.yaml and imagenet-r_test.yaml.

    Below ``data:`` stand lines ``- data/imagenet-r/train/n01443537/art_0.jpg``. Folders train and test in these paths
    are those of another split: an image is looked for in its class folder below the root, below train and below test.
    The classes are the sorted class folders.

    Raises:
        DataError: a list without images, a missing image.
    """
    splits = {}
    for split in ("train", "test"):
        file = root / f"imagenet-r_{split}.yaml"
        text = _text(file).partition("targets:")[0]
        listed = re.findall(r"^\s*-\s+(\S.*?)\s*$", text, flags=re.M)
        if not listed:
            raise DataError(
                f"Expected lines '- data/imagenet-r/train/CLASS/IMAGE' below 'data:' in {file}; there are none."
            )
        _refuse_leaving(listed, str(file))
        ends = ["/".join(PurePosixPath(path).parts[-2:]) for path in listed]
        paths = [_first_there(root, (end, f"train/{end}", f"test/{end}")) for end in ends]
        splits[split] = _split(root, paths, [end.split("/")[0] for end in ends])
    return assemble(root.name, "image", splits)


def listed_images(root: Path, paths: Sequence[str]) -> ImageFiles:
    """Images by their paths below a folder.

    Raises:
        DataError: a path that leads out of the folder, or an image that is not there.
    """
    _refuse_leaving(paths, str(root))
    entries, missing = [], []
    for path in paths:
        try:
            entries.append(ImageEntry(path, os.stat(os.path.join(root, path)).st_size))
        except OSError:
            missing.append(path)
    if missing:
        raise DataError(
            f"{len(missing)} of {len(paths)} listed images are not below {root}, the first is {missing[0]}. "
            "Unpack the images beside the lists."
        )
    return ImageFiles(root, entries)


def _split(root: Path, paths: Sequence[str], labels: Sequence[str], domains: Sequence[str] | None = None) -> Split:
    return Split(listed_images(root, paths), labels, np.array(paths), domains)


def _refuse_leaving(paths: Iterable[str], where: str) -> None:
    for path in paths:
        parts = PurePosixPath(path).parts
        if path.startswith("/") or ".." in parts or "\\" in path or (parts and ":" in parts[0]):
            raise DataError(f"The path {path!r} listed in {where} leads out of its folder; refusing to use it.")


def _listed(file: Path, labels: dict[str, str]) -> list[str]:
    """Paths in a list; its labels, if any, are added to ``labels`` as class folder -> label."""
    paths: list[str] = []
    for number, words in _words(file):
        line = " ".join(words)
        path, label = (line, "") if line.lower().endswith(IMAGE_SUFFIXES) else (" ".join(words[:-1]), words[-1])
        if not path.lower().endswith(IMAGE_SUFFIXES) or (label and not label.isdecimal()):
            raise DataError(f"Expected 'path' or 'path label' in line {number} of {file}, got {line!r:.80}.")
        one = _class_of(path, file)
        if (paths or labels) and bool(label) != bool(labels):
            raise DataError(f"Line {number} of {file} is {'with' if label else 'without'} a label, unlike others.")
        if label and labels.setdefault(one, label) != label:
            raise DataError(f"The class {one} has the labels {labels[one]} and {label}, in line {number} of {file}.")
        paths.append(path)
    return paths


def _in_label_order(labels: Mapping[str, str]) -> list[str]:
    folder: dict[str, str] = {}
    for name, label in labels.items():
        if folder.setdefault(label, name) != name:
            raise DataError(f"The label {label} stands for the classes {folder[label]} and {name}.")
    return [folder[label] for label in sorted(folder, key=int)]


def _class_of(path: str, where: Path) -> str:
    parts = PurePosixPath(path).parts
    if len(parts) < 2:
        raise DataError(f"The image {path} listed in {where} lies in no class folder.")
    return parts[-2]


def _first_there(root: Path, candidates: Sequence[str]) -> str:
    return next((path for path in candidates if (root / path).exists()), candidates[0])


def _pairs(file: Path) -> dict[str, str]:
    """Lines "number value" as a mapping."""
    pairs = {}
    for number, words in _words(file):
        if len(words) < 2 or not words[0].isdecimal():
            raise DataError(f"Expected a number and a value in line {number} of {file}, got {' '.join(words)!r:.80}.")
        pairs[words[0]] = " ".join(words[1:])
    return pairs


def _words(file: Path, comment: str | None = None) -> list[tuple[int, list[str]]]:
    """Number and words of the lines that are neither empty nor comments."""
    lines = [(number, line.split()) for number, line in enumerate(_text(file).splitlines(), start=1)]
    kept = [(number, words) for number, words in lines if words and not (comment and words[0].startswith(comment))]
    if not kept:
        raise DataError(f"{file} is empty.")
    return kept


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read the list {file} ({error}).") from error
