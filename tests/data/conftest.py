"""For the tests: the smallest folder that a preset can be read from, in the first layout that the preset names."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from tangentcl.data import Preset


def png(value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), value % 256, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


PIXELS = png()


def images(root: Path, paths: Iterable[str]) -> None:
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(PIXELS)


def classes(n: int) -> list[str]:
    return [f"{number + 1:03d}.class" for number in range(n)]


def split_folders(root: Path, n: int) -> None:
    images(root, (f"{split}/{name}/{i}.png" for split in ("train", "test") for name in classes(n) for i in (0, 1)))


def class_folders(root: Path, n: int) -> None:
    images(root, (f"{name}/{i}.png" for name in classes(n) for i in range(4)))


def alphabets(root: Path, n: int) -> None:
    images(root, (f"alphabet{c % 5}/character{c}/{i}.png" for c in range(n) for i in range(4)))


def cub(root: Path, n: int) -> None:
    rows = [(name, i) for name in classes(n) for i in range(4)]
    images(root, (f"images/{name}/{i}.png" for name, i in rows))
    numbered = [(k + 1, name, i) for k, (name, i) in enumerate(rows)]
    write_lines(root / "images.txt", (f"{k} {name}/{i}.png" for k, name, i in numbered))
    write_lines(root / "image_class_labels.txt", (f"{k} {int(name[:3])}" for k, name, _ in numbered))
    write_lines(root / "train_test_split.txt", (f"{k} {int(i < 2)}" for k, _, i in numbered))
    write_lines(root / "classes.txt", (f"{int(name[:3])} {name}" for name in classes(n)))


def pets(root: Path, n: int) -> None:
    breeds = [f"{'Cat' if c < 12 else 'dog'}_breed{c}" for c in range(n)]
    images(root, (f"images/{breed}_{i}.jpg" for breed in breeds for i in range(4)))
    for name, numbers in (("trainval.txt", (0, 1)), ("test.txt", (2, 3))):
        rows = [f"{breed}_{i} {c + 1} {1 if c < 12 else 2} 1" for c, breed in enumerate(breeds) for i in numbers]
        write_lines(root / "annotations" / name, ["# image class species breed", *rows])


def domains(root: Path, n: int, names: Iterable[str] = ("clipart", "sketch")) -> None:
    for domain in names:
        for split, numbers in (("train", (0, 1)), ("test", (2,))):
            rows = [(f"{domain}/{name}/{i}.png", c) for c, name in enumerate(classes(n)) for i in numbers]
            images(root, (path for path, _ in rows))
            write_lines(root / f"{domain}_{split}.txt", (f"{path} {label}" for path, label in rows))


def parts(root: Path, n: int) -> None:
    for part in ("cifar10", "mnist", "fashion_mnist", "svhn", "notmnist"):
        split_folders(root / part, n // 5)


def sentences(root: Path, n: int) -> None:
    for split, m in (("train", 3), ("test", 2)):
        with open(root / f"{split}.csv", "w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "category"])
            rows.writerows([f"{split} {i} of {name}", name] for name in classes(n) for i in range(m))


def clinc(root: Path, n: int) -> None:
    content = {
        split: [[f"{split} {i} of {name}", name] for name in classes(n) for i in range(m)]
        for split, m in (("train", 3), ("val", 1), ("test", 2))
    }
    (root / "data_full.json").write_text(json.dumps(content), encoding="utf-8")


# How a small folder of each preset is made; what is not here lies in train/CLASS and test/CLASS.
MAKERS: dict[str, Callable[[Path, int], None]] = {
    "cub200": cub,
    "oxford_pets": pets,
    "domainnet": domains,
    "five_datasets": parts,
    "banking77": sentences,
    "clinc150": clinc,
    "omniglot": alphabets,
    "eurosat": class_folders,
    "kvasir": class_folders,
    "plantvillage": class_folders,
}


def make(root: Path, preset: Preset, n_classes: int) -> Path:
    """A folder of the preset's first name below ``root``, with so many classes."""
    folder = root / preset.folders[0]
    folder.mkdir(parents=True)
    MAKERS.get(preset.name, split_folders)(folder, n_classes)
    return folder


def write_lines(file: Path, lines: Iterable[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
