"""Every preset: its file is complete, a small folder of its shape loads and streams, and what is wrong is said."""

from __future__ import annotations

import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest

from tangentcl.data import PRESETS, Preset, class_incremental, domain_incremental, load
from tangentcl.data.layouts import LAYOUTS
from tangentcl.data.preset import KnownSplit, Part, preset_from
from tangentcl.data.preset_source import preset_source
from tangentcl.errors import DataError

from .conftest import class_folders, domains, images, make, parts, split_folders

ON_DISK = sorted(set(PRESETS) - {"digits"})
# Omniglot is used in several sizes; the smallest one keeps the test quick.
N_CLASSES = {name: PRESETS[name].n_classes for name in ON_DISK} | {"omniglot": 136}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that TANGENTCL_DATA names."""
    monkeypatch.setenv("TANGENTCL_DATA", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_file_of_a_preset_is_complete(name: str) -> None:
    preset = PRESETS[name]
    empty = {field.name for field in fields(Preset) if getattr(preset, field.name) in ("", ())}
    assert empty <= {"hub", "parts", *(("folders", "layouts") if name == "digits" else ())}
    assert preset.source.startswith(("https://", "http://"))
    assert set(preset.layouts) <= set(LAYOUTS)
    assert not any("/" in folder for folder in preset.folders)
    assert len({split.name for split in preset.splits}) == len(preset.splits)
    for split in preset.splits:
        assert (split.train is None) == (split.test is None)
        assert split.total is None or split.train is None
    known = [part for part in preset.parts if part.train is not None]
    if known and preset.splits[0].train is not None:
        assert sum(part.train for part in known) == preset.splits[0].train
        assert sum(part.test for part in known) == preset.splits[0].test


def test_a_file_with_a_missing_or_unknown_key_is_refused() -> None:
    content = {"title": "x", "split": [{"name": "all", "n_classes": 2}], "folders": [], "layouts": [], "notes": []}
    with pytest.raises(TypeError, match="licence"):
        preset_from("x", content)
    with pytest.raises(TypeError, match="colour"):
        preset_from("x", {**content, "colour": "red"})


@pytest.mark.parametrize("name", ON_DISK)
def test_a_small_folder_of_the_right_shape(name: str, data: Path) -> None:
    preset, n = PRESETS[name], N_CLASSES[name]
    make(data, preset, n)
    source = load(name)
    assert (source.name, source.modality, len(source.class_names)) == (name, preset.modality, n)
    assert source.licence == preset.licence
    assert source.citation.startswith(preset.citation)
    assert any(note.startswith(f"found {n} classes, {len(source.train)} training and") for note in source.notes)
    n_tasks = 5 if n % 5 == 0 else 2
    stream = class_incremental(source, n_tasks, order_seed=1993)
    assert sum(len(task.classes) for task in stream) == n
    assert sum(len(task.train) for task in stream) == len(source.train) >= n
    assert stream.describe()["source"]["notes"] == list(source.notes)


@pytest.mark.parametrize("name", ON_DISK)
def test_absent_data_are_answered_with_source_licence_and_layout(name: str, data: Path, monkeypatch) -> None:
    preset = PRESETS[name]
    with pytest.raises(DataError) as absent:
        load(name)
    monkeypatch.delenv("TANGENTCL_DATA")
    with pytest.raises(DataError) as unset:
        load(name)
    for error in (absent, unset):
        for word in (preset.source, preset.licence, preset.layout, *preset.folders):
            assert word in str(error.value)
    assert str(data) in str(absent.value)
    assert "set the environment variable TANGENTCL_DATA" in str(unset.value)


@pytest.mark.parametrize("name", sorted(set(ON_DISK) - {"omniglot"}))
def test_another_number_of_classes_is_an_error(name: str, data: Path) -> None:
    preset = PRESETS[name]
    fewer = 5 if name == "five_datasets" else preset.n_classes - 1
    make(data, preset, fewer)
    with pytest.raises(DataError, match=rf"{preset.n_classes}.* classes, but .* holds {fewer}: .*licence"):
        load(name)


def test_some_alphabets_are_a_data_set_too(data: Path) -> None:
    make(data, PRESETS["omniglot"], 25)
    source = load("omniglot")
    assert [len(task.classes) for task in class_incremental(source, groups=True)] == [5] * 5
    assert source.notes[-1].startswith(
        "found 25 classes, 75 training and 25 test samples; known: all 50 alphabets, 32460"
    )


def test_the_note_names_the_split_whose_size_the_data_have(data: Path) -> None:
    split_folders(data / "imagenet_r", 6)
    splits = (
        KnownSplit("lists", 6, train=12, test=12),
        KnownSplit("folders", 6, train=12, test=12),
        KnownSplit("all images", 6, total=24),
        KnownSplit("another", 6, train=13, test=11),
    )
    preset = replace(PRESETS["imagenet_r"], splits=splits)
    assert preset_source(preset).notes == ("as many classes and samples as: lists; folders; all images",)
    assert preset_source(replace(preset, splits=splits[3:])).notes == (
        "found 6 classes, 12 training and 12 test samples; known: another, 13 training and 11 test samples",
    )


def test_a_share_is_held_out_where_no_split_is_published(data: Path) -> None:
    class_folders(data / "kvasir", 8)
    source = load("kvasir", test_share=0.5, test_seed=3)
    assert (len(source.train), len(source.test)) == (16, 16)
    assert source.notes[0] == "no test split found; 0.5 of each class was held out as the test split with seed 3"


def test_five_data_sets_are_five_groups(data: Path) -> None:
    folder = make(data, PRESETS["five_datasets"], 50)
    source = load("five_datasets")
    stream = class_incremental(source, groups=True)
    assert [task.name for task in stream] == ["cifar10", "mnist", "fashion_mnist", "svhn", "notmnist"]
    assert [len(task.classes) for task in stream] == [10] * 5
    assert source.class_names[10] == "mnist/001.class"
    assert source.train.ids[20] == "mnist/train/001.class/0.png"
    assert "svhn: found 20 and 20 samples; known: 73257 and 26032" in source.notes
    assert not any(note.startswith("notmnist") for note in source.notes)
    images(folder / "svhn", (f"val/{c:03d}.class/0.png" for c in range(1, 11)))
    with pytest.raises(DataError, match=r"svhn in five_datasets has a validation split"):
        load("five_datasets")
    shutil.rmtree(folder / "svhn")
    with pytest.raises(DataError, match=r"lacks the folders svhn\. .*Adversarial-Continual-Learning"):
        load("five_datasets")


def test_a_part_without_a_split_holds_out_its_own_share(data: Path) -> None:
    parts(data / "five_datasets", 50)
    shutil.rmtree(data / "five_datasets" / "notmnist")
    class_folders(data / "five_datasets" / "notmnist", 10)
    notes = load("five_datasets").notes
    assert notes[0] == "notmnist: no test split found; 0.25 of each class was held out as the test split with seed 0"


def test_domains_that_are_missing_or_smaller_are_noted(data: Path) -> None:
    domains(data / "domainnet", 4)
    parts_known = (Part("clipart", 8, 4), Part("sketch", 9, 4), Part("real", 8, 4))
    preset = replace(PRESETS["domainnet"], splits=(KnownSplit("small", 4, train=16, test=8),), parts=parts_known)
    source = preset_source(preset)
    assert source.notes == (
        "as many classes and samples as: small",
        "sketch: found 8 and 4 samples; known: 9 and 4",
        "without the part real",
    )
    stream = domain_incremental(source)
    assert [(task.name, len(task.train), len(task.test)) for task in stream] == [("clipart", 8, 4), ("sketch", 8, 4)]


def test_the_first_layout_that_is_found_is_read(data: Path) -> None:
    split_folders(data / "oxford_pets", 37)
    assert load("oxford_pets").groups is None
    shutil.rmtree(data / "oxford_pets")
    make(data, PRESETS["oxford_pets"], 37)
    split_folders(data / "oxford_pets", 3)
    assert {name: len(breeds) for name, breeds in load("oxford_pets").groups.items()} == {"cat": 12, "dog": 25}


def test_an_archive_that_unpacks_into_a_folder_of_its_own(data: Path) -> None:
    inner = make(data / "elsewhere", PRESETS["cub200"], 200)
    inner.rename(data / "CUB_200_2011")
    (data / "cub200").mkdir()
    (data / "CUB_200_2011").rename(data / "cub200" / "CUB_200_2011")
    source = load("cub200")
    assert (len(source.train), len(source.test)) == (400, 400)


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("cifar100", "cifar-100-python/train", "has no images.*Python pickles .* are not read"),
        ("cifar10", "data_batch_1", "holds data_batch_1, which is none of the known layouts.*Python pickles"),
        ("cars196", "devkit.mat", "none of the known layouts.*Matlab files, which are not read"),
        ("banking77", "sentences.txt", "none of the known layouts.*train.csv"),
    ],
)
def test_files_in_no_known_layout(name: str, file: str, message: str, data: Path) -> None:
    path = data / PRESETS[name].folders[0] / file
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x80\x04.")
    with pytest.raises(DataError, match=message):
        load(name)


def test_an_empty_folder(data: Path) -> None:
    (data / "vtab").mkdir()
    with pytest.raises(DataError, match="holds nothing, which is none of the known layouts"):
        load("vtab")


def test_a_zip_file_alone_in_the_folder_is_read_as_it_is(data: Path) -> None:
    class_folders(data / "unpacked", 8)
    (data / "kvasir").mkdir()
    shutil.make_archive(str(data / "kvasir" / "kvasir-dataset"), "zip", data / "unpacked")
    source = load("kvasir")
    assert len(source.class_names) == 8
    assert source.train.inputs[0].size == (4, 4)
    class_folders(data / "kvasir", 7)
    with pytest.raises(DataError, match="holds 7"):  # folders come before the zip file beside them
        load("kvasir")


def test_several_zip_files_are_not_guessed_among(data: Path) -> None:
    (data / "omniglot").mkdir()
    for name in ("images_background.zip", "images_evaluation.zip"):
        (data / "omniglot" / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"several zip files: images_background\.zip, images_evaluation\.zip"):
        load("omniglot")


def test_texts_where_images_belong(data: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    (data / "cifar10").mkdir()
    pq.write_table(pa.table({"text": ["a", "b"] * 4, "label": [0, 1] * 4}), data / "cifar10" / "train.parquet")
    with pytest.raises(DataError, match=r"CIFAR-10 has the modality image, but .* holds text"):
        load("cifar10")
