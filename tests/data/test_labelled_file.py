"""Files read whole: every kind, every row kept, labels as written, and what cannot be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tangentcl.data.columns import Columns
from tangentcl.data.labelled_file import read_labelled
from tangentcl.errors import ConfigError, DataError

ROWS = [("hello", "greet"), ("bye", "leave"), ("hi", "greet")]


def written(folder: Path, kind: str) -> Path:
    path = folder / f"a.{kind}"
    if kind == "csv":
        path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in ROWS))
    elif kind == "jsonl":
        path.write_text("".join(f'{{"text": "{text}", "label": "{label}"}}\n' for text, label in ROWS))
    else:
        import pyarrow as arrow
        from pyarrow import parquet

        parquet.write_table(arrow.table({"text": [t for t, _ in ROWS], "label": [c for _, c in ROWS]}), path)
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_every_row_is_read_also_of_a_class_with_one_sample(tmp_path: Path, kind: str) -> None:
    found = read_labelled(written(tmp_path, kind), Columns())
    assert [found.inputs[i] for i in range(len(found))] == ["hello", "bye", "hi"]
    assert found.labels == ("greet", "leave", "greet")
    assert len(set(found.ids)) == 3
    assert found.classes == ["greet", "leave"]
    assert found.table({"leave": 0, "greet": 4}).labels.tolist() == [4, 0, 4]


def test_named_columns_and_numbers_as_labels(tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl"
    path.write_text('{"said": "one", "meant": 10, "text": "x"}\n{"said": "two", "meant": 9, "text": "y"}\n')
    found = read_labelled(path, Columns(text="said", label="meant"))
    assert (found.inputs[1], found.labels, found.classes) == ("two", ("10", "9"), ["9", "10"])
    with pytest.raises(ConfigError, match=r"no column 'sayd'. Did you mean 'said'\?"):
        read_labelled(path, Columns(text="sayd", label="meant"))
    with pytest.raises(ConfigError, match="has no label column with a usual name"):
        read_labelled(path, Columns())


def test_parquet_labels_are_named_by_their_metadata(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    labels = datasets.ClassLabel(names=["no", "yes"])
    table = datasets.Dataset.from_dict(
        {"text": ["a", "b"], "label": [1, 0]},
        features=datasets.Features({"text": datasets.Value("string"), "label": labels}),
    )
    table.to_parquet(tmp_path / "c.parquet")
    assert read_labelled(tmp_path / "c.parquet", Columns()).labels == ("yes", "no")


def test_an_image_folder_and_its_splits(tmp_path: Path) -> None:
    for split, shade in (("train", 0), ("test", 255)):
        folder = tmp_path / split / "square"
        folder.mkdir(parents=True)
        Image.fromarray(np.full((4, 4), shade, dtype=np.uint8)).save(folder / "1.png")
    old = read_labelled(tmp_path, Columns(), splits=("test",))
    assert (old.modality, old.labels) == ("image", ("square",))
    assert np.asarray(old.inputs[0]).max() == 255
    assert np.asarray(read_labelled(tmp_path, Columns()).inputs[0]).max() == 0
    with pytest.raises(ConfigError, match="has no columns to choose"):
        read_labelled(tmp_path, Columns(label="label"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "a.csv has no sample"),
        ("a.csv", "text,label\n", "a.csv has no sample"),
        ("a.jsonl", "", "a.jsonl has no sample"),
        ("a.csv", "text,label\nhello,\n", "Sample 1 of .* has no value in column 'label'"),
        ("a.jsonl", '{"text": NaN, "label": "a"}\n', "Line 1 of .*a.jsonl cannot be read: it holds NaN"),
        ("a.jsonl", '{"text": "b", "label": NaN}\n', "Line 1 of .*a.jsonl cannot be read: it holds NaN"),
        ("a.jsonl", '{"text": "b", "label": 1.5}\n', "Expected labels that are texts or integers in .*, got 1.5"),
        ("a.txt", "hello", "Cannot tell what .*a.txt is"),
        ("a.parquet", "hello", "Cannot read .*a.parquet"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_labelled(tmp_path / name, Columns())


def test_a_missing_file_and_an_unknown_label_name_the_nearest(tmp_path: Path) -> None:
    path = written(tmp_path, "csv")
    with pytest.raises(DataError, match=r"There is no file or folder .*aa.csv. Did you mean 'a.csv'\?"):
        read_labelled(tmp_path / "aa.csv", Columns())
    with pytest.raises(DataError, match=r"the label 'greet', none of the 2 known classes. Did you mean 'greets'\?"):
        read_labelled(path, Columns()).table({"greets": 0, "leave": 1})
    with pytest.raises(DataError, match=r"the label 'greet' and 1 more, none of the 1 known classes. Known: x."):
        read_labelled(path, Columns()).table({"x": 0})
