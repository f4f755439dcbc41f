from __future__ import annotations

import json

import pytest

from tangentcl.data import class_incremental, domain_incremental, load
from tangentcl.data.text_files import clinc150
from tangentcl.errors import ConfigError, DataError

ROWS = [{"text": f"sentence {i}, with a comma", "label": "abc"[i % 3], "place": "xy"[i // 6]} for i in range(12)]


def csv_text(rows=ROWS, columns=("text", "label", "place"), mark=",") -> str:
    lines = [mark.join(columns)]
    lines += [mark.join(f'"{row[key]}"' for key in ("text", "label", "place")) for row in rows]
    return "\n".join(lines) + "\n"


def write(path, text: str):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "pairs"])
def test_all_kinds_of_files_give_the_same_samples(tmp_path, kind):
    texts = {
        "csv": csv_text(),
        "tsv": csv_text(mark="\t"),
        "json": json.dumps(ROWS),
        "jsonl": "\n".join(map(json.dumps, ROWS)) + "\n\n",
        "pairs": json.dumps({"train": [[row["text"], row["label"]] for row in ROWS]}),
    }
    source = load(write(tmp_path / f"data.{kind.replace('pairs', 'json')}", texts[kind]))
    assert source.modality == "text"
    assert source.class_names == ("a", "b", "c")
    found = {t.inputs[i]: source.class_names[t.labels[i]] for t in (source.train, source.test) for i in range(len(t))}
    assert found == {row["text"]: row["label"] for row in ROWS}
    assert len(source.test) == 3


def test_a_folder_of_files_and_an_object_of_splits(tmp_path):
    for name in ("train", "dev", "test"):
        write(tmp_path / f"{name}.csv", csv_text())
    write(tmp_path / "notes.json", "{}")
    source = load(tmp_path)
    assert [(name, len(table)) for name, table in source.splits()] == [("train", 12), ("test", 12), ("validation", 12)]
    assert source.n_duplicates == 12
    class_incremental(source, 3)
    splits = load(write(tmp_path / "all.json", json.dumps({"train": ROWS, "test": ROWS[:3], "oos": []})))
    assert (len(splits.train), len(splits.test), splits.validation) == (12, 3, None)


def test_columns_can_be_named_and_mistakes_get_the_nearest(tmp_path):
    path = write(tmp_path / "a.csv", csv_text(columns=("phrase", "topic", "place")))
    source = load(path, text_column="phrase", label_column="topic", domain_column="place")
    assert source.domain_names == ("x", "y")
    assert [task.name for task in domain_incremental(source)] == ["x", "y"]
    with pytest.raises(ConfigError, match=r"no column 'phrse'. Did you mean 'phrase'"):
        load(path, text_column="phrse", label_column="topic")
    with pytest.raises(ConfigError, match=r"no column 'plce'. Did you mean 'place'"):
        load(path, text_column="phrase", label_column="topic", domain_column="plce")
    with pytest.raises(ConfigError, match=r"no text column with a usual name .* Its columns: phrase, topic, place"):
        load(path)


def test_a_column_of_groups(tmp_path):
    rows = [{**row, "place": "vowel" if row["label"] == "a" else "other"} for row in ROWS]
    source = load(write(tmp_path / "a.csv", csv_text(rows)), group_column="place")
    assert source.groups == {"vowel": ("a",), "other": ("b", "c")}
    assert len(class_incremental(source, groups=True)) == 2
    with pytest.raises(DataError, match=r"Class 'a' of .* has samples in the groups 'x' and 'y'"):
        load(write(tmp_path / "b.csv", csv_text()), group_column="place")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "a.json is not JSON"),
        ("a.json", "3", "Expected a list of samples"),
        ("a.json", '[{"text": "a", "label": 1}, 5]', "Sample 2 of .* is neither an object nor"),
        ("a.json", "{}", "no training split"),
        ("a.json", '{"train": []}', "has no sample"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text"', "Line 2 of .* is not JSON"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}', "Sample 2 of .* has no value in column 'label'"),
        ("a.jsonl", '{"text": 7, "label": 1}', "Sample 1 of .* has no text in column 'text' but 7"),
        ("a.csv", "text,label\nhello,\n", "Sample 1 of .* has no value in column 'label'"),
        ("a.csv", "text,label\n  ,a\n", "Sample 1 of .* has no value in column 'text'"),
        ("a.csv", "text,label\nhello, you,a\n", "more fields than the header"),
        ("a.csv", 'text,label\n"hello"x,a\n', "is not CSV"),
        ("a.csv", "text,label\n", "has no sample"),
        ("a.csv", "", "has no sample"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, text, message):
    with pytest.raises(DataError, match=message):
        load(write(tmp_path / name, text))


def test_other_encodings_and_doubled_splits_are_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("text,label\ncafé,a\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        load(path)
    folder = tmp_path / "b"
    folder.mkdir()
    write(folder / "train.csv", csv_text())
    write(folder / "train.jsonl", "\n".join(map(json.dumps, ROWS)))
    with pytest.raises(DataError, match="both the train split"):
        load(folder)


def test_line_separators_inside_texts_are_kept(tmp_path):
    rows = [{"text": f"one\u2028two {i}", "label": "a" if i < 4 else "b"} for i in range(8)]
    path = write(tmp_path / "a.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    assert "\u2028" in load(path).train.inputs[0]
    quoted = "text,label\n" + "".join(f'"line {i}\nnext",{"ab"[i % 2]}\n' for i in range(4))
    assert load(write(tmp_path / "b.csv", quoted)).train.inputs[0].count("\n") == 1


def test_clinc150_layout(tmp_path):
    folder = tmp_path / "clinc150"
    folder.mkdir()
    pairs = [[f"say {intent} {i}", intent] for intent in ("translate", "balance") for i in range(3)]
    content = {
        "train": pairs,
        "val": pairs[:1] + pairs[3:4],
        "test": pairs[:2] + pairs[3:5],
        "oos_train": [["x", "oos"]],
    }
    write(folder / "data_full.json", json.dumps(content))
    assert clinc150(folder).class_names == ("balance", "translate")
    write(folder / "domains.json", json.dumps({"travel": ["translate"], "banking": ["balance"]}))
    source = clinc150(folder)
    assert source.class_names == ("translate", "balance")
    assert [task.name for task in class_incremental(source, groups=True)] == ["travel", "banking"]
    assert len(source.validation) == 2
    write(folder / "data_full.json", json.dumps({"train": pairs}))
    with pytest.raises(DataError, match="train, val and test"):
        clinc150(folder)
