from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from tangentcl.errors import MissingExtra, ModelError
from tangentcl.nn import add_lora, backbone

have_timm = importlib.util.find_spec("timm") is not None
needs_timm = pytest.mark.skipif(not have_timm, reason="timm is not installed")
NAME = "test_vit"


@pytest.mark.skipif(have_timm, reason="timm is installed")
def test_the_extra_is_named() -> None:
    with pytest.raises(MissingExtra, match=r"tangentcl\[timm\]"):
        backbone("timm:vit_base_patch16_224")


@needs_timm
def test_local_weights(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    model = timm.create_model(NAME, pretrained=False, num_classes=0)
    path = tmp_path / "w.safetensors"
    save_file(model.state_dict(), path)
    made = backbone(f"timm:{NAME}", weights=path)
    x = made.sample_input()
    expected = model.eval().forward_features(x)
    assert torch.equal(made(x), expected[:, 0])
    torch.testing.assert_close(backbone(f"timm:{NAME}", weights=path, pooling="mean")(x), expected[:, 1:].mean(1))
    assert made.card.source == "timm"
    assert add_lora(made).n_parameters > 0


@needs_timm
def test_a_classifier_in_the_file_is_left_out(tmp_path: Path) -> None:
    import timm

    path = tmp_path / "w.pt"
    model = timm.create_model(NAME, pretrained=False, num_classes=5)
    torch.save(model.state_dict(), path)
    made = backbone(f"timm:{NAME}", weights=path)
    x = made.sample_input()
    assert torch.equal(made(x), model.eval().forward_features(x)[:, 0])


@needs_timm
def test_an_unknown_name() -> None:
    with pytest.raises(ModelError, match="Did you mean"):
        backbone("timm:vit_base_patch16_242")
