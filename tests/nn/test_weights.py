from __future__ import annotations

import pickle
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tangentcl.errors import ModelError
from tangentcl.nn.weights import load_weights, read_weights, trainable_parameters, weights_sha256


def layer(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_hash_sees_values_dtype_names_and_buffers() -> None:
    reference = weights_sha256(layer())
    assert weights_sha256(layer()) == reference
    assert weights_sha256(layer(1)) != reference
    assert weights_sha256(layer().half()) != reference
    assert weights_sha256(nn.Sequential(*layer(), nn.Identity())) == reference
    changed = layer()
    changed[1].running_mean.add_(1)  # type: ignore[union-attr,operator,index]
    assert weights_sha256(changed) != reference


def test_hash_takes_bfloat16_scalars_and_transposed_tensors() -> None:
    module = nn.Module()
    module.register_buffer("a", torch.ones(2, 3, dtype=torch.bfloat16).T)
    module.register_buffer("b", torch.tensor(1))
    module.register_buffer("c", torch.empty(0))
    assert len(weights_sha256(module)) == 64


def test_hash_of_ninety_megabytes_takes_well_under_a_second() -> None:
    module = nn.Linear(4096, 5632, bias=False)  # 92 MB
    start = time.process_time()
    weights_sha256(module)
    assert time.process_time() - start < 0.8


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    source, path = layer(), tmp_path / f"w{suffix}"
    state = dict(source.state_dict())
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    target = layer(1)
    load_weights(target, path)
    assert weights_sha256(target) == weights_sha256(source)


def test_names_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    state = dict(layer().state_dict())
    state["2.extra"] = state.pop("0.weight").clone()
    save_file(state, path)
    with pytest.raises(ModelError, match=r"1 missing \(0.weight\); 1 unexpected \(2.extra\)"):
        load_weights(layer(), path)


def test_a_part_that_the_file_may_hold(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({**layer().state_dict(), "head.weight": torch.ones(1)}, path)
    with pytest.raises(ModelError, match="unexpected"):
        load_weights(layer(1), path)
    load_weights(layer(1), path, ignore="head")


def test_shapes_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    state = dict(layer().state_dict())
    state["0.weight"] = torch.zeros(5, 3)
    save_file(state, path)
    with pytest.raises(ModelError, match=r"0.weight: file \(5, 3\), model \(2, 3\)"):
        load_weights(layer(), path)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(dict(layer().state_dict()), path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        read_weights(path)
    with pytest.raises(ModelError, match="is not one"):
        read_weights(tmp_path / "absent.safetensors")
    torch_file = tmp_path / "w.pt"
    torch_file.write_bytes(b"nothing that torch wrote")
    with pytest.raises(ModelError, match="could not be read as plain tensors"):
        read_weights(torch_file)


class Runs:
    """Would run code when unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("executed",))


def test_a_pickle_that_would_run_code_is_never_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved, bare = tmp_path / "a.pt", tmp_path / "b.bin"
    torch.save({"weight": Runs()}, saved)
    bare.write_bytes(pickle.dumps(Runs()))
    for path in (saved, bare):
        with pytest.raises(ModelError, match="plain tensors"):
            read_weights(path)
    assert "executed" not in capsys.readouterr().out


def test_counting() -> None:
    module = layer()
    module[0].weight.requires_grad_(False)  # type: ignore[index,union-attr]
    assert trainable_parameters(module) == 2 + 2 + 2


def test_a_damaged_torch_file_never_raises_an_error_of_torch(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"weight": torch.ones(3)}, path)
    whole = path.read_bytes()
    place = whole.index(b"weight")
    for content in (whole[:-30], whole[:place] + b"\xff" * 6 + whole[place + 6 :], b"\x80\x02.", b"\x80\x02]q\x00e."):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"w\.pt"):
            read_weights(path)
