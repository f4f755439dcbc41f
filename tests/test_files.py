"""Files in one piece, and the checksum inside."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
from safetensors.numpy import load, save

from tangentcl.files import Damaged, metadata, remove_parts, sealed, write_whole

TENSORS = {"weights": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array([7])}


def content(about: dict[str, str] | None = None) -> bytes:
    return sealed(save(TENSORS, metadata=about))


@pytest.mark.parametrize("about", [None, {"method": "NCM", "note": "größer"}])
def test_a_sealed_file_stays_a_safetensors_file(about) -> None:
    found = load(content(about))
    assert {key: value.tolist() for key, value in found.items()} == {k: v.tolist() for k, v in TENSORS.items()}
    assert metadata(content(about)) == (about or {})
    assert content(about) == content(about)


def test_every_flipped_bit_and_every_cut_is_found() -> None:
    whole = content({"method": "NCM"})
    harmless = 0
    for place in range(len(whole)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << bit
            try:
                about = metadata(bytes(flipped))
            except Damaged:
                continue
            harmless += 1  # spaces after the header's text may become other blanks, which changes nothing
            assert about == {"method": "NCM"}
            assert {k: v.tolist() for k, v in load(bytes(flipped)).items()} == {
                k: v.tolist() for k, v in TENSORS.items()
            }
    assert harmless <= 8 * 8
    for end in range(len(whole)):
        with pytest.raises(Damaged):
            metadata(whole[:end])
    with pytest.raises(Damaged):
        metadata(whole + b"0")


def test_a_file_without_a_checksum_and_other_bytes_are_refused() -> None:
    with pytest.raises(Damaged, match="no checksum"):
        metadata(save(TENSORS))
    noise = random.Random(0).randbytes(500)
    for bad in (b"", b"1234567", noise, (4).to_bytes(8, "little") + b"null", (2).to_bytes(8, "little") + b"[]"):
        with pytest.raises(Damaged):
            metadata(bad)


def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch) -> None:
    path = tmp_path / "state"
    write_whole(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["state"]
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.stat(path).st_mode & 0o777 == 0o644


def test_what_a_killed_writer_left_is_removed(tmp_path) -> None:
    (tmp_path / "below").mkdir()
    for name in (".state.abc.part", "below/.learner.safetensors.x.part"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "state").write_bytes(b"whole")
    remove_parts(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["below", "state"]
    assert not os.listdir(tmp_path / "below")
