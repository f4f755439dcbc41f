"""What lies in a folder of data."""

from __future__ import annotations

from pathlib import Path

from tangentcl.errors import DataError


def files_in(folder: Path) -> list[Path]:
    """Everything in a folder, sorted by name.

    Raises:
        DataError: the folder cannot be listed, or is gone.

    >>> import tempfile
    >>> files_in(Path(tempfile.mkdtemp()))
    []
    """
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"Cannot list the folder {folder} ({error.strerror or error}).") from error
