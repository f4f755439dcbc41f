"""Errors about data say of which data they speak."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tangentcl.errors import ConfigError, DataError


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the path before errors that do not say of which data they speak."""
    try:
        yield
    except (ConfigError, DataError) as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error
