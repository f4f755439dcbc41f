from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tangentcl.errors import ModelError
from tangentcl.nn import add_lora, backbone, from_module
from tangentcl.nn.hf import from_transformers
from tangentcl.nn.vit import BUNDLED

Tiny = Callable[[str], nn.Module]
needs_bundled = pytest.mark.skipif(not (BUNDLED / "bundled.safetensors").is_file(), reason="no bundled weights here")


def active(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if module.training}


def test_a_frozen_backbone_is_deterministic_in_training_mode(tiny: Tiny) -> None:
    made = from_transformers(tiny("bert"))  # dropout 0.1 in its config
    x = made.sample_input()
    expected = made(x)
    made.train()
    assert made.training
    assert torch.equal(made(x), expected)
    assert torch.equal(made(x), expected)


def test_batch_statistics_of_a_frozen_backbone_stay() -> None:
    norm = nn.BatchNorm1d(4)
    made = from_module(nn.Sequential(nn.Linear(4, 4), norm), None, 4, name="b", modality="array")
    made.train()
    made(torch.randn(8, 4) + 5)
    assert torch.equal(norm.running_mean, torch.zeros(4))  # type: ignore[arg-type]


def test_with_lora_only_its_own_dropout_is_active(tiny: Tiny) -> None:
    made = from_transformers(tiny("bert"))
    add_lora(made, dropout=0.5)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    made.train()
    assert not torch.equal(made(made.sample_input()), made(made.sample_input()))
    modules = dict(made.named_modules())
    on = {name for name in active(made) if isinstance(modules[name], nn.Dropout)}
    assert on
    assert all("lora_dropout" in name for name in on)
    made.eval()
    assert not active(made)
    assert torch.equal(made(made.sample_input()), made(made.sample_input()))


def test_lora_without_dropout_is_deterministic_in_training_mode(tiny: Tiny) -> None:
    made = from_transformers(tiny("bert"))
    add_lora(made)
    made.train()
    assert torch.equal(made(made.sample_input()), made(made.sample_input()))


def test_full_fine_tuning_is_in_training_mode_throughout(tiny: Tiny) -> None:
    made = from_transformers(tiny("bert"))
    made.requires_grad_(True)
    made.train()
    assert active(made) == {name for name, _ in made.named_modules()}
    assert not torch.equal(made(made.sample_input()), made(made.sample_input()))


def test_partly_frozen(tiny: Tiny) -> None:
    made = from_transformers(tiny("bert"))
    made.model.encoder.layer[1].requires_grad_(True)  # type: ignore[operator,union-attr,index]
    made.train()
    on = active(made.model)
    assert "encoder.layer.1.attention.self" in on
    assert not any(name.startswith(("encoder.layer.0", "embeddings")) for name in on)


def test_any_module_and_its_features() -> None:
    module = nn.Linear(4, 3)
    made = from_module(module, lambda m, x: m(x) * 2, 3, name="mine", modality="array")
    x = torch.randn(5, 4)
    assert torch.equal(made(x), module(x) * 2)
    assert made.card.describe()["n_parameters"] == 15
    assert made.eval_transform is None
    json.dumps(made.card.describe())
    with pytest.raises(ModelError, match=r"expected features \[B, 7\] from mine, got \(1, 3\)"):
        from_module(module, None, 7, name="mine", modality="array", sample=torch.ones(1, 4))
    with pytest.raises(ModelError, match="Did you mean 'image'"):
        from_module(module, None, 3, name="mine", modality="images")


@needs_bundled
def test_bundled() -> None:
    made = backbone()
    raw = torch.zeros(28, 28, dtype=torch.uint8).numpy()
    x = made.eval_transform.collate([made.eval_transform(raw, None)])  # type: ignore[union-attr]
    assert made(x).shape == (1, made.width)
    assert made.card.source == "bundled"
    assert made.card.n_parameters <= 3_000_000
    assert not torch.equal(backbone(pooling="cls")(x), backbone(pooling="mean")(x))
    assert len(add_lora(made).layers) % 2 == 0


@needs_bundled
def test_options_that_a_backbone_does_not_have() -> None:
    with pytest.raises(ModelError, match="no option max_length"):
        backbone("bundled", max_length=3)
    with pytest.raises(ModelError, match="no option image_size"):
        backbone("bundled", image_size=64)
    with pytest.raises(ModelError, match="no pooler of its own"):
        backbone("bundled", pooling="pooled")
    with pytest.raises(ModelError, match="no option revision"):
        backbone("timm:vit_base_patch16_224", revision="main")


def test_copies_and_pickles(tiny: Tiny) -> None:
    made = from_transformers(tiny("vit"))
    x = made.sample_input()
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert torch.equal(other(x), made(x))
        assert other.card == made.card


def test_importing_brings_no_heavy_package() -> None:
    heavy = ("transformers", "peft", "timm", "torchvision", "datasets", "matplotlib")
    code = f"import sys, tangentcl.nn; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
