"""``tangentcl list data``: what is known of every preset, and whether it is here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tangentcl.data import PRESETS

from .conftest import Answer


def test_the_data_sets_and_whether_they_are_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Answer
) -> None:
    (tmp_path / "CUB_200_2011").mkdir()
    monkeypatch.setenv("TANGENTCL_DATA", str(tmp_path))
    code, out, err = answer("list", "data")
    assert (code, err) == (0, "")
    lines = {line.split()[0]: line.split() for line in out.splitlines()}
    assert set(lines) == {"name", *PRESETS}
    assert lines["name"] == ["name", "modality", "classes", "train", "test", "licence", "here"]
    assert lines["cub200"] == ["cub200", "image", "200", "5994", "5794", "not", "confirmed,", "see", "source", "yes"]
    assert lines["kvasir"][:6] == ["kvasir", "image", "8", "8000", "in", "all"]
    assert {name for name, words in lines.items() if words[-1] == "yes"} == {"cub200"}
    assert {name for name, words in lines.items() if words[-1] == "embedded"} == {"digits"}


def test_the_same_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Answer) -> None:
    (tmp_path / "clinc150").mkdir()
    monkeypatch.setenv("TANGENTCL_DATA", str(tmp_path))
    rows = {row["name"]: row for row in json.loads(answer("list", "data", "--json")[1])}
    assert rows["clinc150"]["found"] == str(tmp_path / "clinc150")
    assert (rows["cub200"]["found"], rows["digits"]["embedded"]) == (None, True)
    for name, preset in PRESETS.items():
        row = rows[name]
        assert (row["licence"], row["source"], row["layout"]) == (preset.licence, preset.source, preset.layout)
        assert row["notes"] == list(preset.notes)


def test_without_the_variable_nothing_but_the_digits_is_here(monkeypatch: pytest.MonkeyPatch, answer: Answer) -> None:
    monkeypatch.delenv("TANGENTCL_DATA", raising=False)
    rows = json.loads(answer("list", "data", "--json")[1])
    assert {row["found"] for row in rows} == {None}
    assert [row["name"] for row in rows if row["embedded"]] == ["digits"]
