"""The files of a transformers model, in a folder or on the hub, read so that every failure is one clear error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tangentcl.documents import Malformed, parse_json
from tangentcl.errors import ModelError, nearest
from tangentcl.nn.weights import reason


@dataclass(frozen=True)
class Files:
    """The small files of a model folder or hub repository that transformers itself does not read for us."""

    name: str
    revision: str | None
    local: bool

    @classmethod
    def of(cls, name: str, revision: str | None) -> Files:
        """The files of a folder, or of a hub repository at the commit that ``revision`` means now."""
        if Path(name).is_dir():
            return cls(name, None, True)
        from huggingface_hub import hf_hub_download

        config = hf_hub_download(name, "config.json", revision=revision)
        return cls(name, Path(config).parent.name, False)  # the cache keeps .../snapshots/COMMIT/config.json

    def json(self, path: str) -> dict[str, Any] | None:
        """The object in a JSON file, or None if the model has no such file.

        Raises:
            ModelError: the file is damaged, or holds something else.
        """
        file = self._find(path)
        if file is None:
            return None
        try:
            content = parse_json(file.read_bytes())
        except (OSError, Malformed) as error:
            raise ModelError(f"{file} cannot be used: {error}. Fetch the model again.") from error
        if not isinstance(content, dict):
            raise ModelError(f"{file} must hold a JSON object, got {type(content).__name__}. Fetch the model again.")
        return content

    def _find(self, path: str) -> Path | None:
        if self.local:
            file = Path(self.name) / path
            return file if file.is_file() else None
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            return Path(hf_hub_download(self.name, path, revision=self.revision))
        except EntryNotFoundError:
            return None


def trained_pooling(files: Files) -> str | None:
    """What ``1_Pooling/config.json`` of a sentence-transformers model says, else None."""
    about = files.json("1_Pooling/config.json")
    if about is None:
        return None
    modes = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "last"}
    chosen = [ours for theirs, ours in modes.items() if about.get(theirs)]
    if len(chosen) != 1 or any(about.get(k) for k in about if k.startswith("pooling_mode") and k not in modes):
        raise ModelError(f"{files.name}: 1_Pooling/config.json asks for {about}. Pass pooling='mean', 'cls' or 'last'.")
    return chosen[0]


def guarded(name: str, load: Any, /, *arguments: Any, **keywords: Any) -> Any:
    """``load(*arguments, **keywords)`` with what transformers raises turned into one error that says what to try."""
    try:
        return load(*arguments, **keywords)
    except Exception as error:  # of damaged files transformers raises AttributeError, TypeError, IndexError and others
        if isinstance(error, ModelError):
            if name in str(error):
                raise
            raise ModelError(f"backbone '{name}': {error}") from error
        if Path(name).is_dir():
            hint = f"Check that folder '{name}' holds a complete transformers model (config.json, model.safetensors)."
        else:
            hint = (
                "Expected 'bundled', 'timm:NAME', a local folder or a name on the hub. Without a connection give a "
                "local folder, or download the model once and set HF_HUB_OFFLINE=1."
                + (nearest(name, ["bundled"]) if "/" not in name else "")
            )
        raise ModelError(f"backbone '{name}' could not be loaded: {reason(error)} {hint}") from error


def load_config(name: str, revision: str | None, trust: bool) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(name, revision=revision or "main", trust_remote_code=trust)


def load_model(name: str, revision: str | None, trust: bool) -> tuple[nn.Module, tuple[str, ...]]:
    from transformers import AutoModel

    with quietly():
        model, info = AutoModel.from_pretrained(
            name, revision=revision or "main", trust_remote_code=trust, weights_only=True, output_loading_info=True
        )
    mismatched = [str(key) for key in info.get("mismatched_keys", ())]
    if mismatched or info.get("error_msgs"):
        raise ModelError(f"backbone '{name}': weights do not fit the config: {', '.join(mismatched[:4])}.")
    return model, tuple(info["missing_keys"])


@contextmanager
def quietly() -> Iterator[None]:
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # what it warns of, weights without a file, is an error of ours or not used
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def empty_model(config: Any, trust: bool) -> nn.Module:
    from transformers import AutoModel

    return AutoModel.from_config(config, trust_remote_code=trust)


def load_tokenizer(name: str, revision: str | None, trust: bool) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name, revision=revision or "main", trust_remote_code=trust)
