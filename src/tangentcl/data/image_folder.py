"""Images in a folder, or in a zip file that is read without unpacking: one folder per class."""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from tangentcl.data.assemble import Split, assemble, split_of
from tangentcl.data.inputs import decode_image
from tangentcl.data.table import Source
from tangentcl.errors import DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_MAX_MEMBER_BYTES = 1 << 28
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others unpack in one go, however much it becomes
_MAX_FILES_COMPARED = 100_000


@dataclass(frozen=True)
class ImageEntry:
    """One image: path inside the folder or zip file, size in bytes, checksum (zip only)."""

    path: str
    size: int
    checksum: int = 0


def image_folder(
    path: Path,
    *,
    name: str | None = None,
    test_share: float = 0.25,
    test_seed: int = 0,
    licence: str = "",
    citation: str = "",
) -> Source:
    """Images sorted into one folder per class, or a zip file of such a folder.

    Understood are ``class/image.png``, ``train/class/image.png`` with ``test`` and ``val`` beside it, and deeper
    folders: in ``Greek/character01/image.png`` the class is "Greek/character01" and "Greek" its group. Images are
    decoded when they are used; folders and files whose names begin with a dot are skipped.

    Raises:
        DataError: no images, an image outside any class folder, a class folder beside ``train``, a path in the zip
            file that leads out of it, or later a corrupt image, which is named.
    """
    read = image_splits(path)
    if "train" not in read:
        raise DataError(f"The folder train in {path} has no images.")
    return assemble(
        name or path.stem,
        "image",
        read,
        groups=_groups(sorted(set(read["train"].labels))),
        test_share=test_share,
        test_seed=test_seed,
        licence=licence,
        citation=citation,
    )


def image_splits(path: Path) -> dict[str, Split]:
    """The splits that `image_folder` makes a source of; all images are "train" where no folders say otherwise.

    Raises:
        DataError: as `image_folder`.
    """
    if path.is_dir():
        entries = _walk(path)
    else:
        entries = _members(path)
    if not entries:
        raise DataError(f"No images in {path}. Expected one folder per class with {', '.join(IMAGE_SUFFIXES[:4])}, ...")
    splits: dict[str, list[ImageEntry]] = {}
    classes: dict[str, list[str]] = {}
    prefix = _common_folder([entry.path for entry in entries])
    names = {PurePosixPath(entry.path).relative_to(prefix).parts[0] for entry in entries}
    by_split = {split_of(top) for top in names} >= {"train"} and len(names) > 1
    for entry in entries:
        parts = PurePosixPath(entry.path).relative_to(prefix).parts
        split = "train"
        if by_split:
            found = split_of(parts[0])
            if found is None:
                raise DataError(f"{parts[0]!r} in {path} is neither train, val nor test. Move it out of the folder.")
            split, parts = found, parts[1:]
        if len(parts) < 2:
            raise DataError(f"The image {entry.path} in {path} lies in no class folder.")
        splits.setdefault(split, []).append(entry)
        classes.setdefault(split, []).append("/".join(parts[:-1]))
    return {
        split: Split(_inputs(path, found), classes[split], np.array([entry.path for entry in found]))
        for split, found in splits.items()
    }


def image_entry(path: Path) -> ImageEntry:
    """One image file, for `ImageFiles` of its folder."""
    return ImageEntry(path.name, path.stat().st_size)


def encoded_images(path: Path) -> tuple[ImageFiles | ZippedImages, list[str]]:
    """All images in a folder or zip file, at any depth, and their paths in it.

    Raises:
        DataError: as `image_folder`.
    """
    entries = _walk(path) if path.is_dir() else _members(path)
    if not entries:
        raise DataError(f"No images in {path}. Expected files with {', '.join(IMAGE_SUFFIXES[:4])}, ...")
    return _inputs(path, entries), [entry.path for entry in entries]


class ImageFiles:
    """Images in files, decoded when asked for."""

    def __init__(self, root: Path, entries: Sequence[ImageEntry]) -> None:
        self.root = str(root)
        self.paths = [entry.path for entry in entries]
        self.sizes = [entry.size for entry in entries]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        return decode_image(self._read(index), os.path.join(self.root, self.paths[index]))

    def digest(self) -> bytes:
        return repr(list(zip(self.paths, self.sizes))).encode()

    def content_keys(self) -> list[Hashable] | None:
        if len(self) > _MAX_FILES_COMPARED:
            return None
        return [hashlib.blake2b(self._read(i), digest_size=16).digest() for i in range(len(self))]

    def file_keys(self) -> list[Hashable]:
        """Name, size and time of change of each file."""
        stats = [_stat(os.path.join(self.root, path)) for path in self.paths]
        return [(path, stat.st_size, stat.st_mtime_ns) for path, stat in zip(self.paths, stats)]

    def _read(self, index: int) -> bytes:
        path = os.path.join(self.root, self.paths[index])
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            raise DataError(f"Cannot read the image {path} ({error.strerror or error}).") from error


class ZippedImages:
    """Images in a zip file, decoded when asked for; every process opens the file for itself."""

    def __init__(self, path: Path, entries: Sequence[ImageEntry]) -> None:
        self.path = str(path)
        self.members = [entry.path for entry in entries]
        self.keys = [(entry.checksum, entry.size) for entry in entries]
        self._opened: tuple[int, zipfile.ZipFile] | None = None

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> Image.Image:
        member = self.members[index]
        try:
            with self._archive().open(member) as file:
                data = file.read(self.keys[index][1])  # never more than the size it claims
                if file.read(1):
                    raise zipfile.BadZipFile("it unpacks to more than it claims")
        except Exception as error:  # zipfile raises its own errors and those of what it unpacks with
            raise DataError(f"Cannot read {member} in {self.path} ({error}). Pack the images again.") from error
        return decode_image(data, f"{member} in {self.path}")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def digest(self) -> bytes:
        return repr(list(zip(self.members, self.keys))).encode()

    def content_keys(self) -> list[Hashable] | None:
        return list(self.keys)

    def _archive(self) -> zipfile.ZipFile:
        # A file handle shared after a fork shares its position, so each process needs its own.
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), zipfile.ZipFile(self.path))
        return self._opened[1]


def _inputs(path: Path, entries: Sequence[ImageEntry]) -> ImageFiles | ZippedImages:
    return ImageFiles(path, entries) if path.is_dir() else ZippedImages(path, entries)


def _is_image(path: PurePosixPath) -> bool:
    hidden = any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden


def _walk(root: Path) -> list[ImageEntry]:
    entries, visited = [], set()

    def refuse(error: OSError) -> None:
        raise DataError(f"Cannot list the folder {error.filename} ({error.strerror or error}).") from error

    for folder, subfolders, files in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        leaf = not subfolders and folder != str(root)
        if leaf and not any(_is_image(PurePosixPath(file)) for file in files):
            raise DataError(f"The folder {folder} has no images. Add some or remove it.")
        for file in sorted(files):
            path = PurePosixPath(Path(folder, file).relative_to(root).as_posix())
            if _is_image(path):
                entries.append(ImageEntry(str(path), _stat(os.path.join(folder, file)).st_size))
    return entries


def _stat(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise DataError(f"Cannot read the image {path} ({error.strerror or error}).") from error


def _members(path: Path) -> list[ImageEntry]:
    entries, names = [], set()
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except Exception as error:  # of a damaged directory zipfile raises struct.error, ValueError and others
        raise DataError(f"{path} is no zip file that can be read ({error}).") from error
    for info in infos:
        if not info.filename:
            raise DataError(f"A file in {path} has no name. Was the zip file damaged? Pack it again.")
        member = PurePosixPath(info.filename)
        if info.is_dir() or not _is_image(member):
            continue
        if member.is_absolute() or ".." in member.parts or "\\" in info.filename or ":" in member.parts[0]:
            raise DataError(f"The path {info.filename!r} in {path} leads out of the zip file; refusing to use it.")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise DataError(f"{info.filename!r} in {path} is a link; pack the images themselves.")
        if info.file_size > _MAX_MEMBER_BYTES:
            raise DataError(f"{info.filename!r} in {path} unpacks to {info.file_size} bytes, too much for an image.")
        if info.compress_type not in _PACKED:
            raise DataError(f"{info.filename!r} in {path} is packed by an unusual method; use plain zip (deflate).")
        if info.filename in names:
            raise DataError(f"{info.filename!r} is in {path} twice. Pack each image once.")
        names.add(info.filename)
        entries.append(ImageEntry(info.filename, info.file_size, info.CRC))
    return sorted(entries, key=lambda entry: entry.path)


def _common_folder(paths: Sequence[str]) -> str:
    """Folder above the class or split folders: single folders at the top that hold no images are passed through."""
    prefix = PurePosixPath(".")
    parents = sorted({PurePosixPath(path).parent for path in paths})
    while True:
        below = {folder.relative_to(prefix).parts[:1] for folder in parents}
        if len(below) != 1 or below == {()}:
            return str(prefix)
        deeper = prefix / next(iter(below))[0]
        if deeper in parents:
            return str(prefix)
        prefix = deeper


def _groups(classes: Sequence[str]) -> dict[str, list[str]] | None:
    if not all("/" in name for name in classes):
        return None
    groups: dict[str, list[str]] = {}
    for name in classes:
        groups.setdefault(name.split("/")[0], []).append(name)
    return groups
