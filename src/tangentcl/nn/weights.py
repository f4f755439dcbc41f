"""Weights as files and as fingerprints: safe loading, hashing, counting."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from tangentcl.errors import ModelError


def trainable_parameters(module: nn.Module) -> int:
    """Number of scalars that a gradient step may change.

    >>> trainable_parameters(nn.Linear(3, 2))
    8
    """
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 over names and `tensor_digests` of every parameter and persistent buffer, in order of name.

    >>> layer = nn.Linear(2, 2)
    >>> before = weights_sha256(layer)
    >>> before == weights_sha256(layer), len(before)
    (True, 64)
    >>> with torch.no_grad():
    ...     _ = layer.weight.add_(1)
    >>> before == weights_sha256(layer)
    False
    """
    digest = hashlib.sha256()
    for name, of_tensor in sorted(tensor_digests(module).items()):
        digest.update(f"{name}|{of_tensor}|".encode())
    return digest.hexdigest()


def tensor_digests(module: nn.Module) -> dict[str, str]:
    """SHA-256 of every parameter and persistent buffer by name, over dtype, shape and bytes.

    >>> list(tensor_digests(nn.Linear(2, 2)))
    ['weight', 'bias']
    """
    return {name: tensor_digest(t) for name, t in module.state_dict().items() if isinstance(t, Tensor)}


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 over dtype, shape and bytes of a tensor.

    >>> tensor_digest(torch.zeros(2)) == tensor_digest(torch.zeros(2)) != tensor_digest(torch.zeros(2, 1))
    True
    """
    digest = hashlib.sha256(f"{tensor.dtype}|{tuple(tensor.shape)}|".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a ``.safetensors`` file, or in a torch file read with ``weights_only=True``.

    Raises:
        ModelError: no such file, a damaged file, or a pickle that holds anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"weights: expected a file of weights, but '{path}' is not one. Check the path.")
    if path.suffix == ".safetensors":
        import safetensors
        import safetensors.torch

        try:
            return safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError, KeyError) as error:  # KeyError: numbers that torch does not have
            raise ModelError(
                f"weights: '{path}' ({path.stat().st_size} bytes) is not a readable safetensors file ({error}). "
                "It may be cut short, or a Git LFS pointer; fetch it again."
            ) from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of damaged bytes its reader raises KeyError, AttributeError, struct.error and others
        raise ModelError(
            f"weights: '{path}' could not be read as plain tensors ({reason(error)}). A file "
            "that would run code while loading is never opened; save a state dict as safetensors instead."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ModelError(f"weights: '{path}' holds {type(content).__name__}, expected a state dict: name -> tensor.")
    return dict(content)


def load_weights(module: nn.Module, path: str | Path, *, ignore: str | None = None) -> None:
    """Load a file of weights; every name and every shape has to fit.

    Args:
        module: changed in place, or not at all.
        path: see :func:`read_weights`.
        ignore: name of a submodule that the file may hold and the module does not, such as a classifier.

    Raises:
        ModelError: names or shapes that do not fit (a few are named), or an unreadable file (see :func:`read_weights`).
    """
    given, own = read_weights(path), module.state_dict()
    if ignore is not None:
        given = {name: tensor for name, tensor in given.items() if name in own or not name.startswith(f"{ignore}.")}
    missing = sorted(own.keys() - given.keys())
    unexpected = sorted(given.keys() - own.keys())
    if missing or unexpected:
        raise ModelError(
            f"weights: '{path}' does not fit {type(module).__name__}: {_few('missing', missing)}; "
            f"{_few('unexpected', unexpected)}. Check that architecture and file belong together."
        )
    wrong = [
        f"{k}: file {tuple(given[k].shape)}, model {tuple(own[k].shape)}" for k in own if given[k].shape != own[k].shape
    ]
    if wrong:
        raise ModelError(f"weights: '{path}' does not fit {type(module).__name__}: {_few('wrong shapes', wrong)}.")
    module.load_state_dict(given)


def reason(error: BaseException) -> str:
    """The one line of an error that says what was wrong, without the advice to open the file anyway.

    >>> reason(ValueError("first\\nsecond"))
    'first'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    unsafe = [line for line in lines if line.startswith("WeightsUnpickler error:")]
    return (unsafe or lines)[0].split(" was not an allowed global")[0].split(" In PyTorch 2.6")[0][:300]


def _few(what: str, names: list[str], shown: int = 4) -> str:
    tail = ", ..." if len(names) > shown else ""
    return f"{len(names)} {what}" + (f" ({', '.join(names[:shown])}{tail})" if names else "")
