from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tangentcl.data import class_incremental, domain_incremental, load
from tangentcl.data.columns import Columns
from tangentcl.data.labelled_file import read_labelled
from tangentcl.errors import ConfigError, DataError, MissingExtra


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 3), value).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, values, labels, names=None, column="image", label="label", rows_per_group=3, **more):
    images = [{"bytes": png(v) if v is not None else None, "path": f"{v}.png"} for v in values]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({column: pa.array(images, kind), label: pa.array(labels), **more})
    if names is not None:
        features = {column: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": names}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table, path, row_group_size=rows_per_group)
    return path


def test_images_stay_encoded_and_class_names_come_from_the_metadata(tmp_path):
    write(tmp_path / "train.parquet", range(8), [0, 1] * 4, ["dog", "ant"])
    write(tmp_path / "test.parquet", range(50, 54), [1, 0] * 2, ["dog", "ant"])
    source = load(tmp_path)
    assert source.class_names == ("dog", "ant")
    assert source.modality == "image"
    assert [source.train.inputs[i].getpixel((0, 0)) for i in range(8)] == list(range(8))
    assert source.test.labels.tolist() == [1, 0, 1, 0]
    assert source.n_duplicates == 0


def test_shards_in_a_data_folder_and_other_column_names(tmp_path):
    for shard in range(2):
        path = tmp_path / "data" / f"train-0000{shard}-of-00002.parquet"
        write(path, range(4 * shard, 4 * shard + 4), ["b", "a"] * 2, column="img", label="fine_label")
    write(
        tmp_path / "data" / "validation-00000-of-00001.parquet", [90, 91], ["a", "b"], column="img", label="fine_label"
    )
    source = load(tmp_path)
    assert [source.train.inputs[i].getpixel((0, 0)) for i in range(8)] == list(range(8))
    assert source.class_names == ("a", "b")
    assert len(source.test) == 2


def test_one_file_gets_a_test_split_and_domains(tmp_path):
    path = write(tmp_path / "a.parquet", range(16), [0, 1] * 8, camera=pa.array(["x"] * 8 + ["y"] * 8))
    source = load(path, domain_column="camera")
    assert (len(source.train), len(source.test)) == (12, 4)
    assert len(domain_incremental(source)) == 2
    with pytest.raises(ConfigError, match="Did you mean 'camera'"):
        load(path, domain_column="camra")
    with pytest.raises(ConfigError, match="Did you mean 'image'"):
        load(path, image_column="imag")
    with pytest.raises(ConfigError, match="has no encoded images"):
        load(path, image_column="camera")


def test_groups_of_classes_by_a_column(tmp_path):
    coarse = pa.array(["animal", "plant"] * 4)
    source = load(write(tmp_path / "a.parquet", range(8), [0, 1] * 4, ["dog", "oak"], kind=coarse), group_column="kind")
    assert source.groups == {"animal": ("dog",), "plant": ("oak",)}
    assert [task.name for task in class_incremental(source, groups=True)] == ["animal", "plant"]


def test_texts(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"t{i}" for i in range(8)], "label": [0, 1] * 4}), path)
    source = load(path)
    assert source.modality == "text"
    assert source.train.inputs[0].startswith("t")


def test_damage_is_named(tmp_path):
    with pytest.raises(DataError, match=r"1 samples in .* have no image bytes"):
        load(write(tmp_path / "a.parquet", [1, None, 2, 3], [0, 1, 0, 1]))
    with pytest.raises(DataError, match=r"1 samples in .* have no value in column 'label'"):
        load(write(tmp_path / "b.parquet", [1, 2, 3, 4], [0, None, 1, 1]))
    (tmp_path / "c.parquet").write_bytes(b"PAR1 but damaged")
    with pytest.raises(DataError, match=r"Cannot read .*c\.parquet"):
        load(tmp_path / "c.parquet")
    folder = tmp_path / "d"
    write(folder / "numbers.parquet", [1, 2], [0, 1])
    with pytest.raises(DataError, match=r"Which split .* belongs to is unclear"):
        load(folder)
    folder = tmp_path / "e"
    write(folder / "test.parquet", [1, 2], [0, 1])
    with pytest.raises(DataError, match="has no training split"):
        load(folder)
    with pytest.raises(DataError, match="Unknown label 5 in the train split"):
        load(write(tmp_path / "f.parquet", [1, 2], [0, 5], ["dog", "ant"]))


def test_an_image_that_does_not_decode_is_named_by_number(tmp_path):
    path = tmp_path / "a.parquet"
    images = [{"bytes": b"broken" if i == 0 else png(i), "path": ""} for i in range(8)]
    pq.write_table(pa.table({"image": images, "label": np.arange(8) % 2}), path)
    source = load(path)
    table = source.train if "train/0" in source.train.ids else source.test
    with pytest.raises(DataError, match="Cannot decode the image number 0 of"):
        table.inputs[table.ids.tolist().index("train/0")]


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", range(8), [0, 1] * 4)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"reading a\.parquet.*tangentcl\[data\]"):
        load(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (b"{", r"metadata of .*a\.parquet: it is not JSON"),
        (b"\xff", r"metadata of .*a\.parquet: it is not UTF-8"),
        (b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": 3}}}}', "list the names of classes, got 3"),
        (b'{"info": {"features": {"label": {"_type": "ClassLabel"}}}}', "list the names of classes, got None"),
    ],
)
def test_damaged_metadata_are_named_instead_of_giving_other_class_names(tmp_path, metadata, message):
    table = pq.read_table(write(tmp_path / "a.parquet", range(8), [0, 1] * 4))
    pq.write_table(table.replace_schema_metadata({"huggingface": metadata}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=message):
        load(tmp_path / "a.parquet")


def test_labels_beyond_the_names_are_refused_everywhere(tmp_path):
    for label in (2, -1):  # -1 would silently be the last name
        path = write(tmp_path / "a.parquet", range(4), [0, 1, 0, label], ["dog", "ant"])
        with pytest.raises(DataError, match=rf"Unknown label {label} in .*a\.parquet"):
            read_labelled(path, Columns())
        path = write(tmp_path / "b.parquet", range(4), [0, 1, 0, label], ["dog", "ant"], kind=pa.array(["x"] * 4))
        with pytest.raises(DataError, match=rf"Unknown label {label} in .*b\.parquet"):
            load(path, group_column="kind")


def test_texts_that_are_not_utf8_and_files_that_are_cut_are_named(tmp_path):
    path = tmp_path / "a.parquet"
    texts = pa.array([b"\xff\xfe", b"fine", b"good", b"well"]).view(pa.string())
    pq.write_table(pa.table({"text": texts, "label": [0, 1, 0, 1]}), path)
    with pytest.raises(DataError, match=r"Cannot read .*a\.parquet \(UnicodeDecodeError"):
        load(path)
    whole = path.read_bytes()
    for end in (0, 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match=r"Cannot read .*a\.parquet"):
            load(path)
