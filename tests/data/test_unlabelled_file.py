"""Files without labels: every kind that is read, and what is wrong in them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tangentcl.data.unlabelled_file import UnlabelledFile, read_unlabelled
from tangentcl.errors import ConfigError, DataError


def picture(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), value, dtype=np.uint8)).save(path)
    return path


def test_images_from_files_folders_and_zip_files(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for i, name in enumerate(["b.png", "deep/er/a.png", "x.jpg"]):
        picture(root / name, i)
    (root / "notes.txt").write_text("no image")
    found = read_unlabelled(root, "image")
    assert found.ids == (f"{root}/b.png", f"{root}/x.jpg", f"{root}/deep/er/a.png")
    assert [np.asarray(found.inputs[i])[0, 0] for i in (0, 2)] == [0, 1]
    packed = tmp_path / "photos.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(root / "b.png", "in/b.png")
    assert read_unlabelled(packed, "image").ids == (f"{packed}/in/b.png",)
    one = read_unlabelled(root / "b.png", "image")
    assert one.ids == (str(root / "b.png"),)
    assert one.inputs[0].size == (4, 4)
    both = UnlabelledFile.joined([one, found])
    assert len(both) == 4
    assert np.asarray(both.inputs[3])[0, 0] == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "one\ntwo, three\n\nfour"),
        ("a.csv", 'text,n\none,1\n"two, three",2\n,3\nfour,4\n'),
        ("a.tsv", "n\tutterance\n1\tone\n2\ttwo, three\n3\t\n4\tfour\n"),
        ("a.jsonl", '{"text": "one"}\n{"text": "two, three"}\n{"text": null}\n{"text": "four", "label": 1}\n'),
        ("a.json", '[{"text": "one"}, {"text": "two, three"}, {"n": 1}, {"text": "four"}]'),
        ("b.json", '["one", "two, three", "", "four"]'),
    ],
)
def test_texts_of_every_kind(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    found = read_unlabelled(path, "text")
    assert [found.inputs[i] for i in range(4)] == ["one", "two, three", "", "four"]
    assert found.bad == {2: "the text is empty"}
    assert found.ids[3] == f"{path}:4"


def test_bad_places_move_along_when_files_are_joined(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("one\n \nthree\n")
    parts = [read_unlabelled(tmp_path / f"{name}.txt", "text") for name in "ab"]
    assert set(UnlabelledFile.joined(parts).bad) == {1, 4}


def test_parquet_files_without_labels(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(arrow.table({"text": ["one", None, "three"]}), tmp_path / "t.parquet")
    found = read_unlabelled(tmp_path / "t.parquet", "text")
    assert (found.inputs[2], set(found.bad)) == ("three", {1})
    encoded = picture(tmp_path / "a.png", 7).read_bytes()
    parquet.write_table(arrow.table({"image": [{"bytes": encoded, "path": "a.png"}]}), tmp_path / "i.parquet")
    images = read_unlabelled(tmp_path / "i.parquet", "image")
    assert np.asarray(images.inputs[0])[0, 0] == 7
    with pytest.raises(ConfigError, match=r"has no column 'imag'. Did you mean 'image'"):
        read_unlabelled(tmp_path / "i.parquet", "image", column="imag")
    with pytest.raises(ConfigError, match="has no image column with a usual name"):
        read_unlabelled(tmp_path / "t.parquet", "image")


def test_what_cannot_be_read_says_what_would_be(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "a.csv").write_text("words\nx\n")
    (tmp_path / "a.jsonl").write_text('{"text": 5}\n')
    (tmp_path / "empty").mkdir()
    for path, modality, message in [
        ("b.txt", "text", "There is no file or folder .*b.txt. Did you mean 'a.txt'"),
        ("a.txt", "text", "has no sample"),
        ("a.txt", "image", "expected images as a file"),
        ("empty", "image", "No images in"),
        ("empty", "text", "expected texts as a .txt file"),
        ("a.csv", "array", "Files hold images or texts"),
    ]:
        with pytest.raises(DataError, match=message):
            read_unlabelled(tmp_path / path, modality)
    with pytest.raises(ConfigError, match="no text column with a usual name"):
        read_unlabelled(tmp_path / "a.csv", "text")
    assert read_unlabelled(tmp_path / "a.csv", "text", column="words").inputs[0] == "x"
    assert read_unlabelled(tmp_path / "a.jsonl", "text").bad == {0: "expected a text, got 5"}
    with pytest.raises(ConfigError, match="one text per line and no columns"):
        read_unlabelled(tmp_path / "a.txt", "text", column="x")
    (tmp_path / "latin.txt").write_bytes("für\n".encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8 text"):
        read_unlabelled(tmp_path / "latin.txt", "text")
