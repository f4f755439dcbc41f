"""``tangentcl predict``: rows for files of every kind, and nothing lost when a sample cannot be used."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tangentcl import load, load_predictor

Answer = Callable[..., tuple[int, str, str]]
RUN = "runs/small/ncm/seed-0"


@pytest.fixture
def photos(here: Path, answer: Answer) -> list[Path]:
    """Six digits in the folder photos, and a run that knows digits."""
    code, _, err = answer("run", "small.toml", "--no-report")
    assert code == 0, err
    source = load("digits")
    paths = [here / "photos" / f"{i}.png" for i in range(6)]
    paths[0].parent.mkdir()
    for i, path in enumerate(paths):
        Image.fromarray(source.test.inputs[i]).save(path)
    return paths


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def test_a_row_for_every_image(photos: list[Path], answer: Answer) -> None:
    code, out, err = answer("predict", RUN, "--input", "photos")
    assert (code, err) == (0, "")
    rows = table(out)
    assert [row["input"] for row in rows] == [f"photos/{i}.png" for i in range(6)]
    predictor = load_predictor(RUN, device="cpu")
    assert [row["class"] for row in rows] == predictor.predict(photos)
    best = predictor.softmax(photos).max(axis=1)
    np.testing.assert_allclose([float(row["score"]) for row in rows], best, atol=1e-6)


def test_an_export_answers_like_its_run(photos: list[Path], answer: Answer) -> None:
    _, expected, _ = answer("predict", RUN, "--input", "photos", "--top", "3")
    assert expected.splitlines()[0] == "input,class,score,class_2,score_2,class_3,score_3"
    assert answer("export", RUN, "--out", "export")[0] == 0
    assert answer("predict", "export", "--input", "photos", "--top", "3") == (0, expected, "")
    code, out, _ = answer("predict", "export", "--input", "photos/2.png", "photos/1.png", "--top", "99", "--json")
    assert code == 0
    found = json.loads(out)
    assert [row["input"] for row in found["predictions"]] == ["photos/2.png", "photos/1.png"]
    assert [len(row["top"]) for row in found["predictions"]] == [10, 10]
    assert found["left_out"] == []


def test_answers_among_the_classes_of_a_task(photos: list[Path], answer: Answer) -> None:
    for task in ("T2", "1"):
        code, out, _ = answer("predict", RUN, "--input", "photos", "--task", task, "--top", "5")
        assert code == 0
        rows = table(out)
        assert {row["class"] for row in rows} | {row["class_2"] for row in rows} == {"2", "3"}
        assert "class_3" not in rows[0]


def test_files_of_rows(photos: list[Path], answer: Answer, here: Path) -> None:
    code, out, err = answer("predict", RUN, "--input", "photos", "--out", "p.csv")
    assert (code, out, err) == (0, "6 predictions: p.csv\n", "")
    assert len(table((here / "p.csv").read_text())) == 6
    code, out, _ = answer("predict", RUN, "--input", "photos", "--out", "p.jsonl", "--json")
    assert json.loads(out) == {"file": "p.jsonl", "n": 6, "left_out": [], "error": None}
    lines = [json.loads(line) for line in (here / "p.jsonl").read_text().splitlines()]
    assert [line["class"] for line in lines] == [row["class"] for row in table((here / "p.csv").read_text())]


def test_a_bad_image_ends_it_and_keeps_what_was_made(photos: list[Path], answer: Answer, here: Path) -> None:
    photos[4].write_bytes(b"no image")
    code, out, err = answer("predict", RUN, "--input", "photos", "--batch-size", "2", "--out", "p.csv")
    assert code == 2
    assert "Cannot decode the image photos/4.png (none of the formats" in err
    assert "4 of 6 predictions were made before it and are kept. To leave out such samples: --skip-bad" in err
    assert [row["input"] for row in table((here / "p.csv").read_text())] == [f"photos/{i}.png" for i in range(4)]
    code, out, err = answer("predict", RUN, "--input", "photos", "--out", "p.csv", "--skip-bad")
    assert (code, out) == (0, "5 predictions, 1 left out: p.csv\n")
    assert err.startswith("left out photos/4.png: Cannot decode the image photos/4.png")
    assert len(table((here / "p.csv").read_text())) == 5
    code, out, err = answer("predict", RUN, "--input", "photos/4.png")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1


def test_mistakes_are_one_line(photos: list[Path], answer: Answer, here: Path) -> None:
    (here / "a.txt").write_text("a text\n")
    for arguments, message in [
        ([RUN], "required: --input"),
        ([RUN, "--input", "photo"], "There is no file or folder photo. Did you mean 'photos'?"),
        ([RUN, "--input", "a.txt"], "Cannot predict from a.txt: expected images"),
        ([RUN, "--input", "photos", "--out", "p.xml"], "--out must end in .csv or .jsonl, got 'p.xml'"),
        ([RUN, "--input", "photos", "--out", "no/p.csv"], "--out: there is no folder no. Make it first."),
        ([RUN, "--input", "photos", "--top", "0"], "--top must be at least 1, got 0"),
        ([RUN, "--input", "photos", "--task", "T9"], "there is no task 'T9'"),
        ([RUN, "--input", "photos", "--batch-size", "0"], "batch_size must be at least 1, got 0"),
        ([RUN, "--input", "photos", "--device", "gpu"], "unknown device 'gpu'"),
        ([RUN, "--input", "photos", "--text-column", "x"], "takes images, and so no column of the other kind"),
        (["nowhere", "--input", "photos"], "there is no folder nowhere. Give an export"),
        (["photos", "--input", "photos"], "photos is neither an export"),
    ]:
        code, out, err = answer("predict", *arguments)
        assert (code, out) == (2, ""), arguments
        assert err.startswith("tangentcl: error: ")
        assert err.count("\n") == 1
        assert message in err


def test_texts_by_lines_and_columns(
    here: Path, answer: Answer, monkeypatch: pytest.MonkeyPatch, classifier_folder: Path
) -> None:
    from tangentcl.nn import backbone

    monkeypatch.setattr("tangentcl.experiments.build.backbone", backbone)
    rows = [f"the {a} {b},{label}" for a, label in (("cat", "x"), ("dog", "y")) for b in ("sat", "ran", "home", "now")]
    (here / "texts.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    (here / "texts.toml").write_text(
        f'name = "texts"\n[source]\nname = "texts.csv"\n[stream]\nn_tasks = 2\n[backbone]\n'
        f'name = "{classifier_folder}"\n[plan]\ndevice = "cpu"\n[[method]]\nname = "ncm"\n'
    )
    code, _, err = answer("run", "texts.toml", "--no-report")
    assert code == 0, err
    run = "runs/texts/ncm/seed-0"
    (here / "a.txt").write_text("the cat sat\n\nthe dog ran home now\n")
    (here / "b.csv").write_text("n,words\n1,the dog ran\n")
    code, out, err = answer("predict", run, "--input", "a.txt")
    assert (code, out) == (2, "")
    assert err == "tangentcl: error: a.txt:2: the text is empty. To leave out such samples: --skip-bad\n"
    code, out, err = answer("predict", run, "--input", "a.txt", "--skip-bad")
    assert (code, err) == (0, "left out a.txt:2: the text is empty\n")
    assert [row["input"] for row in table(out)] == ["a.txt:1", "a.txt:3"]
    code, out, err = answer("predict", run, "--input", "b.csv", "--text-column", "words")
    assert code == 0, err
    assert [row["input"] for row in table(out)] == ["b.csv:1"]
