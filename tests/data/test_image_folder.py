from __future__ import annotations

import io
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from tangentcl.data import ImageTransform, Samples, Source, class_incremental, load
from tangentcl.errors import ConfigError, DataError


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (6, 5), value).save(buffer, "PNG")
    return buffer.getvalue()


def files(*names: str) -> dict[str, bytes]:
    return {name: png(i + 1) for i, name in enumerate(names)}


def fill(folder: Path, content: dict[str, bytes]) -> Path:
    for name, data in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def pack(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def decode_all(source: Source) -> None:
    for table in (source.train, source.test):
        for i in range(len(table)):
            table.inputs[i].load()


CLASSES = files(*(f"{name}/{i}.png" for name in ("cat", "dog") for i in range(4)))
SPLITS = files(
    *(f"{split}/{name}/{i}.png" for split in ("train", "test", "val") for name in ("cat", "dog") for i in (1, 2))
)
NESTED = files(*(f"all/{alphabet}/c{c}/{i}.png" for alphabet in ("Greek", "Latin") for c in (1, 2) for i in range(4)))


@pytest.mark.parametrize("packed", [False, True])
def test_class_folders(tmp_path, packed):
    source = load(pack(tmp_path / "pets.zip", CLASSES) if packed else fill(tmp_path / "pets", CLASSES))
    assert source.name == "pets"
    assert source.class_names == ("cat", "dog")
    assert (len(source.train), len(source.test)) == (6, 2)
    assert source.groups is None
    assert source.n_duplicates == 0


@pytest.mark.parametrize("packed", [False, True])
def test_pixels_and_labels_belong_together(tmp_path, packed):
    source = load(pack(tmp_path / "a.zip", CLASSES) if packed else fill(tmp_path / "a", CLASSES))
    values = {name: i + 1 for i, name in enumerate(CLASSES)}
    for table in (source.train, source.test):
        for i, one in enumerate(table.ids.tolist()):
            assert table.inputs[i].getpixel((0, 0)) == values[one]
            assert source.class_names[table.labels[i]] == one.split("/")[0]


@pytest.mark.parametrize("packed", [False, True])
def test_split_folders(tmp_path, packed):
    source = load(pack(tmp_path / "a.zip", SPLITS) if packed else fill(tmp_path / "a", SPLITS))
    assert [(name, len(table)) for name, table in source.splits()] == [("train", 4), ("test", 4), ("validation", 4)]
    assert source.test.ids[0] == "test/cat/1.png"
    assert source.notes == ()


@pytest.mark.parametrize("packed", [False, True])
def test_nested_folders_are_classes_in_groups(tmp_path, packed):
    source = load(pack(tmp_path / "a.zip", NESTED) if packed else fill(tmp_path / "a", NESTED))
    assert source.class_names == ("Greek/c1", "Greek/c2", "Latin/c1", "Latin/c2")
    assert source.groups == {"Greek": ("Greek/c1", "Greek/c2"), "Latin": ("Latin/c1", "Latin/c2")}
    stream = class_incremental(source, groups=True)
    assert [task.name for task in stream] == ["Greek", "Latin"]


def test_training_and_validation_folders_alone(tmp_path):
    source = load(fill(tmp_path, {name: data for name, data in SPLITS.items() if not name.startswith("test")}))
    assert source.validation is None
    assert source.test.ids[0].startswith("val/")
    assert "validation split is used as the test split" in source.notes[0]


def test_hidden_and_foreign_files_are_skipped(tmp_path):
    extra = {"cat/.hidden.png": b"x", "cat/notes.txt": b"x", "__MACOSX/cat/._1.png": b"x", "README.md": b"x"}
    assert len(load(pack(tmp_path / "a.zip", {**CLASSES, **extra})).train) == 6


def test_a_corrupt_image_is_named_when_it_is_used(tmp_path):
    broken = {**CLASSES, "cat/1.png": png(1)[:40]}
    for source in (load(fill(tmp_path / "a", broken)), load(pack(tmp_path / "b.zip", broken))):
        with pytest.raises(DataError, match=r"cat.1\.png"):
            decode_all(source)


def test_a_file_that_vanished_is_named(tmp_path):
    source = load(fill(tmp_path, CLASSES))
    (tmp_path / str(source.train.ids[0])).unlink()
    with pytest.raises(DataError, match="Cannot read the image"):
        source.train.inputs[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "No images"),
        ({"readme.txt": b"x"}, "No images"),
        ({**CLASSES, "lost.png": png(1)}, "lost.png in .* lies in no class folder"),
        ({**SPLITS, "extra/cat/1.png": png(1)}, "'extra' in .* is neither train, val nor test"),
        ({**SPLITS, "test/cow/1.png": png(1)}, "Unknown label 'cow' in the test split"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_folders_that_make_no_sense_are_refused(tmp_path, packed, content, message):
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match=message):
        load(pack(tmp_path / "a.zip", content) if packed else fill(tmp_path / "a", content))


def test_an_empty_class_folder_is_named(tmp_path):
    fill(tmp_path, CLASSES)
    (tmp_path / "cow").mkdir()
    with pytest.raises(DataError, match="cow has no images"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["../cat/1.png", "/cat/1.png", "cat/../../1.png", "C:/cat/1.png"])
def test_paths_that_lead_out_of_a_zip_file_are_refused(tmp_path, name):
    with pytest.raises(DataError, match="leads out of the zip file"):
        load(pack(tmp_path / "a.zip", {**CLASSES, name: png(1)}))


def test_links_and_damage_in_a_zip_file_are_refused(tmp_path):
    path = pack(tmp_path / "a.zip", CLASSES)
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("cat/link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/hostname")
    with pytest.raises(DataError, match="is a link"):
        load(path)
    path.write_bytes(b"no zip file")
    with pytest.raises(DataError, match="no zip file that can be read"):
        load(path)


def test_linked_folders_are_followed_once(tmp_path):
    fill(tmp_path / "a", CLASSES)
    (tmp_path / "a" / "cat" / "loop").symlink_to(tmp_path / "a", target_is_directory=True)
    assert len(load(tmp_path / "a").train) == 6


def test_columns_have_no_meaning_for_folders(tmp_path):
    with pytest.raises(ConfigError, match="leave out label_column"):
        load(fill(tmp_path, CLASSES), label_column="label")


@pytest.mark.parametrize("packed", [False, True])
def test_images_load_in_worker_processes(tmp_path, packed):
    source = load(pack(tmp_path / "a.zip", CLASSES) if packed else fill(tmp_path / "a", CLASSES))
    samples = Samples(source.train, transform=ImageTransform(4, (0, 0, 0), (1, 1, 1)))
    here = [batch for batch, _ in samples.batches(2)]
    loader = DataLoader(samples, batch_size=2, num_workers=2, collate_fn=samples.collate)
    for expected, (found, _) in zip(here, loader, strict=True):
        assert np.array_equal(expected, found)
    pickle.loads(pickle.dumps(source))


def test_a_member_that_unpacks_to_more_than_it_claims_is_never_unpacked_whole(tmp_path):
    """A zip bomb: 256 MiB of zeros that claim to be 40 bytes. The peak of memory says how much was unpacked."""
    path = pack(tmp_path / "a.zip", {**CLASSES, "cow/1.png": png(1), "cow/2.png": png(2)})
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as out:
        for name in archive.namelist():
            with out.open(name, "w", force_zip64=False) as file:
                if name == "cow/1.png":
                    for _ in range(256):
                        file.write(bytes((1 << 20) + 77))
                else:
                    file.write(archive.read(name))
    size = (256 * ((1 << 20) + 77)).to_bytes(4, "little")
    content = bomb.read_bytes()
    assert content.count(size) == 2  # beside the data and in the directory
    bomb.write_bytes(content.replace(size, (40).to_bytes(4, "little")))
    source = load(bomb)
    i = (source.train.ids.tolist() + source.test.ids.tolist()).index("cow/1.png")
    table, i = (source.train, i) if i < len(source.train) else (source.test, i - len(source.train))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"Cannot read cow/1\.png in .*bomb\.zip \(Bad CRC-32"):
        table.inputs[i]
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


def test_members_that_claim_too_much_are_packed_unusually_or_twice_are_refused(tmp_path, monkeypatch):
    for kind in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(tmp_path / "a.zip", "w", kind) as archive:
            archive.writestr("cat/1.png", png(1))
        with pytest.raises(DataError, match=r"'cat/1\.png' in .*a\.zip is packed by an unusual method"):
            load(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("cat/1.png", png(1))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("cat/1.png", png(2))
    with pytest.raises(DataError, match=r"'cat/1\.png' is in .*a\.zip twice"):
        load(tmp_path / "a.zip")
    monkeypatch.setattr("tangentcl.data.image_folder._MAX_MEMBER_BYTES", 20)
    with pytest.raises(DataError, match=r"unpacks to \d+ bytes, too much for an image"):
        load(pack(tmp_path / "a.zip", CLASSES))


def test_a_zip_file_with_a_damaged_directory_is_named(tmp_path):
    path = pack(tmp_path / "a.zip", CLASSES)
    whole = path.read_bytes()
    place = whole.index(b"PK\x01\x02") + 28  # length of the first name
    path.write_bytes(whole[:place] + bytes(2) + whole[place + 2 :])
    with pytest.raises(DataError, match=r"a\.zip"):
        load(path)
