"""The errors of the library: each says what was expected, what came and what to try."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType
from typing import Any


class TangentclError(Exception):
    """Anything the library refuses on purpose; the command line prints it as one line and exits with 2."""


class ConfigError(TangentclError, ValueError):
    """An experiment file, option or keyword that cannot be used."""


class DataError(TangentclError, ValueError):
    """Samples, labels or a task stream that cannot be used."""


class ModelError(TangentclError, ValueError):
    """A backbone, adapter or checkpoint that cannot be used."""


class RecordError(TangentclError, ValueError):
    """A run record that is missing, unfinished or damaged."""


class MissingExtra(TangentclError, ImportError):
    """An optional package that is not installed."""


class NonFiniteLoss(TangentclError, ArithmeticError):
    """A loss term that became NaN or infinite."""


def nearest(name: str, known: Iterable[str]) -> str:
    """End of a sentence that helps with a mistyped name: the nearest known one, then all of them.

    >>> nearest("fientune", ["finetune", "ncm"])
    " Did you mean 'finetune'? Known: finetune, ncm."
    >>> nearest("zzz", ["finetune", "ncm"])
    ' Known: finetune, ncm.'
    """
    names = sorted(str(k) for k in known)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return f"{hint} Known: {', '.join(names) or 'none'}."


def imported_class(name: str, what: str, known: Iterable[str]) -> Any:
    """What lies under ``"package.module:Class"``, with one error for all that can go wrong on the way.

    Args:
        name: as the user gave it. what: it should be, as in "method". known: the names that need no import.

    Raises:
        ConfigError: no colon in it, or something that cannot be imported.

    >>> imported_class("fractions:Fraction", "method", []).__name__
    'Fraction'
    """
    if ":" not in name:
        raise ConfigError(f"unknown {what} {name!r}.{nearest(name, known)} Or give 'package.module:Class'.")
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # importing runs the user's module, which can raise anything
        raise ConfigError(
            f"{what} {name!r} cannot be imported: {type(error).__name__}: {error}. Expected 'package.module:Class' "
            f"with the package installed, in the current folder or on PYTHONPATH."
        ) from error


def import_extra(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional package, or say which extra brings it.

    Args:
        module: dotted module name, e.g. ``"datasets"``.
        extra: name of the extra in ``pip install "tangentcl[extra]"``.
        purpose: what it is needed for, as in "reading Parquet files".

    Raises:
        MissingExtra: the package, or something it imports, is not installed.

    >>> import_extra("json", extra="data", purpose="an example").__name__
    'json'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"{purpose} needs the package '{module.split('.')[0]}', which could not be imported ({error}). "
            f'Try: pip install "tangentcl[{extra}]"'
        ) from error
