from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image

from tangentcl.data import class_incremental, load
from tangentcl.data.hub import HubImages
from tangentcl.errors import ConfigError, DataError, MissingExtra

datasets = pytest.importorskip("datasets")


def pictures(n: int):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "ant"])})
    images = [Image.new("L", (4, 3), i) for i in range(n)]
    return datasets.Dataset.from_dict({"image": images, "label": [i % 2 for i in range(n)]}, features=features)


@pytest.fixture
def saved(tmp_path):
    datasets.DatasetDict({"train": pictures(8), "test": pictures(4), "unsupervised": pictures(1)}).save_to_disk(
        tmp_path / "pets"
    )
    return tmp_path / "pets"


def test_images_saved_to_disk(saved):
    for name in (f"hf:{saved}", saved):
        source = load(name)
        assert source.name == "pets"
        assert source.class_names == ("dog", "ant")
        assert (len(source.train), len(source.test)) == (8, 4)
        assert source.train.inputs[3].getpixel((0, 0)) == 3
    assert source.n_duplicates == 4
    assert load(saved).fingerprint == load(saved).fingerprint
    copy = pickle.loads(pickle.dumps(source))
    assert copy.train.inputs[3].getpixel((0, 0)) == 3
    assert len(class_incremental(source, 2)) == 2


def test_fingerprints_are_those_of_the_content(saved, tmp_path):
    source = load(saved)
    same = datasets.DatasetDict({"train": pictures(8), "test": pictures(4)})
    same.save_to_disk(tmp_path / "same")
    other = datasets.DatasetDict({"train": pictures(8), "test": pictures(4).select([1, 0, 2, 3])})
    other.save_to_disk(tmp_path / "other")
    assert load(tmp_path / "same").fingerprint == source.fingerprint != load(tmp_path / "other").fingerprint


def test_images_that_stay_in_files(tmp_path):
    for i in range(4):
        folder = tmp_path / "train" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 3), i).save(folder / f"{i}.png")
    part = datasets.Dataset.from_dict(
        {"image": [str(tmp_path / "train" / "ab"[i % 2] / f"{i}.png") for i in range(4)], "label": [0, 1, 0, 1]}
    ).cast_column("image", datasets.Image())
    images = HubImages(part, "image", "files")
    assert images[2].getpixel((0, 0)) == 2
    (tmp_path / "train" / "a" / "2.png").unlink()
    with pytest.raises(DataError, match=r"Cannot read the image .*2\.png"):
        images[2]


def test_texts_from_a_single_split_and_a_folder_of_csv(tmp_path):
    rows = {"sentence": [f"t{i}" for i in range(8)], "topic": ["b", "a"] * 4, "place": ["x", "y"] * 4}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "texts")
    source = load(f"hf:{tmp_path / 'texts'}", label_column="topic", domain_column="place", group_column="place")
    assert source.modality == "text"
    assert (len(source.train), len(source.test)) == (6, 2)
    assert source.domain_names == ("x", "y")
    assert source.groups == {"x": ("b",), "y": ("a",)}
    with pytest.raises(ConfigError, match="Did you mean 'topic'"):
        load(f"hf:{tmp_path / 'texts'}", label_column="topi")


def test_columns_that_hold_no_images_are_refused(saved):
    with pytest.raises(ConfigError, match=r"Column 'label' of .* has no images"):
        load(f"hf:{saved}", image_column="label")


def test_no_training_split_and_missing_labels(tmp_path):
    datasets.DatasetDict({"test": pictures(4)}).save_to_disk(tmp_path / "a")
    with pytest.raises(DataError, match="has no training split; found: test"):
        load(f"hf:{tmp_path / 'a'}")
    datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, None]}).save_to_disk(tmp_path / "b")
    with pytest.raises(DataError, match="has no value in column 'label'"):
        load(f"hf:{tmp_path / 'b'}")


@pytest.mark.parametrize(
    "error", [ConnectionError("no route"), FileNotFoundError("not there"), ValueError("no config")]
)
def test_an_unreachable_hub_is_one_clear_error(monkeypatch, error):
    def refuse(*_args, **_keywords):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match=rf"Cannot load the data set 'uoft-cs/cifar100'.*{error}.*hf:PATH"):
        load("hf:uoft-cs/cifar100")


def test_without_datasets_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"tangentcl\[data\]"):
        load("hf:anything")


def test_configuration_and_revision_are_passed_on(monkeypatch):
    seen = {}

    def answer(name, config, *, revision):
        seen.update(name=name, config=config, revision=revision)
        return datasets.DatasetDict({"train": pictures(8), "validation": pictures(4)})

    monkeypatch.setattr(datasets, "load_dataset", answer)
    source = load("hf:some/pets", config="small", revision="abc")
    assert seen == {"name": "some/pets", "config": "small", "revision": "abc"}
    assert np.asarray(source.test.inputs[1])[0, 0] == 1
    assert "validation split is used" in source.notes[0]


def test_a_damaged_arrow_file_is_named_and_never_read_past_its_end(tmp_path):
    datasets.Dataset.from_dict({"text": [f"text {i}" for i in range(8)], "label": ["a", "b"] * 4}).save_to_disk(
        tmp_path / "saved"
    )
    path = next((tmp_path / "saved").glob("*.arrow"))
    whole = path.read_bytes()
    offsets = whole.index(np.arange(0, 30, 6, dtype=np.int32)[:5].tobytes())
    path.write_bytes(whole[:offsets] + np.array([0, 1 << 30], dtype=np.int32).tobytes() + whole[offsets + 8 :])
    with pytest.raises(DataError, match=r"Cannot read the data set .*saved.* \(ArrowInvalid"):
        load(tmp_path / "saved")
