"""Valid files of data, and what reading them gives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tangentcl.data import load
from tangentcl.data.columns import Columns
from tangentcl.data.labelled_file import read_labelled
from tangentcl.data.naming import naming
from tangentcl.data.table import Source

Make = Callable[[Path], None]
Read = Callable[[Path], Any]


ROWS = [(f"{word} {i}, they said", label) for i in range(4) for word, label in (("bye", "leave"), ("hi", "greet"))]


def text(name: str, content: str) -> Make:
    """A maker of one text file."""
    return lambda folder: (folder / name).write_text(content, encoding="utf-8") and None


def table(separator: str) -> str:
    """Rows with a header, fields quoted."""
    lines = [("text", "label"), *ROWS]
    return "".join(separator.join(f'"{field}"' for field in line) + "\n" for line in lines)


def source_of(name: str) -> Read:
    """Reads a data set whole: its description, labels, and every sample decoded."""

    def read(folder: Path) -> Any:
        found = load(folder / name if name else folder)
        samples = [
            (split, part.labels.tolist(), [_sample(part.inputs[i]) for i in range(len(part))])
            for split, part in found.splits()
        ]
        return found.class_names, samples, found.describe()

    return read


def _sample(raw: Any) -> Any:
    return raw if isinstance(raw, str) else (raw.mode, raw.size, raw.tobytes())


def picture(i: int) -> Image.Image:
    """A small image that differs from i to i."""
    pixels = np.random.default_rng(i).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def images(suffix: str) -> Make:
    """A maker of a folder with two classes of two images of one format."""

    def make(folder: Path) -> None:
        for i, name in enumerate(("cat/a", "cat/b", "dog/a", "dog/b")):
            path = folder / f"{name}.{suffix}"
            path.parent.mkdir(exist_ok=True)
            picture(i).save(path)

    return make


def zipped(folder: Path) -> None:
    """A zip file of images."""
    (folder / "aside").mkdir()
    images("png")(folder / "aside")
    shutil.make_archive(str(folder / "a"), "zip", folder / "aside")
    shutil.rmtree(folder / "aside")


def parquet_texts(folder: Path) -> None:
    """A Parquet file of texts."""
    import pyarrow
    import pyarrow.parquet

    columns = {"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "a.parquet")


def parquet_images(folder: Path) -> None:
    """A Parquet file of images as Hugging Face writes it, with names of classes."""
    import io

    import datasets

    encoded = []
    for i in range(4):
        buffer = io.BytesIO()
        picture(i).save(buffer, "PNG")
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    made = datasets.Dataset.from_dict({"image": encoded, "label": [0, 1, 0, 1]}, features=features)
    datasets.disable_progress_bars()
    made.to_parquet(folder / "a.parquet")


def saved_dataset(folder: Path) -> None:
    """A data set as ``save_to_disk`` of Hugging Face datasets leaves it."""
    import datasets

    datasets.disable_progress_bars()
    columns = {"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]}
    datasets.Dataset.from_dict(columns).save_to_disk(str(folder / "saved"))
    (next((folder / "saved").glob("*.arrow"))).rename(folder / "saved" / "data-00000-of-00001.arrow")


def clinc(folder: Path) -> None:
    """CLINC150 in small, as it is published."""
    content = {split: [list(row) for row in ROWS] for split in ("train", "val", "test")}
    (folder / "data_full.json").write_text(json.dumps(content))
    (folder / "domains.json").write_text(json.dumps({"talk": ["greet", "leave"]}))


def read_to_forecast(folder: Path) -> Any:
    """Samples and labels as a forecast from files takes them."""
    found = read_labelled(folder / "a.parquet", Columns())
    return found.labels, [_sample(found.inputs[i]) for i in range(len(found))]


def read_clinc(folder: Path) -> Any:
    """Its samples."""
    from tangentcl.data.text_files import clinc150

    found = clinc150(folder)
    return found.class_names, found.groups, [(list(t.inputs), t.labels.tolist()) for _, t in found.splits()]


def listed(folder: Path) -> None:
    """Images that lists name, as several data sets are published."""
    images("png")(folder)
    rows = [("cat/a.png", 0), ("dog/a.png", 1)]
    for split in ("train", "test"):
        text = "".join(f"{path} {label}\n" for path, label in rows)
        (folder / f"{split}.txt").write_text(text)
        (folder / f"real_{split}.txt").write_text(text)
        body = "".join(f"- data/imagenet-r/{split}/{path}\n" for path, _ in rows)
        (folder / f"imagenet-r_{split}.yaml").write_text(f"data:\n{body}targets:\n- 0\n- 1\n")


def lists_by(reader: Callable[[Path], Source]) -> Read:
    """Reads lists of images and the images."""

    def read(folder: Path) -> Any:
        with naming(folder):
            found = reader(folder)
        return found.class_names, [[_sample(t.inputs[i]) for i in range(len(t))] for _, t in found.splits()]

    return read
