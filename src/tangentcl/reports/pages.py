"""Self-contained HTML pages: from a template and its values to a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from ..errors import RecordError
from ..records.files import atomic_write
from .svg import DARK, LIGHT


def render(template: str, values: Mapping[str, Any]) -> str:
    """A page from a template beside this file; text that came from a user is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render({**values, "light": LIGHT, "dark": DARK})


def write_page(text: str, out: str | Path, name: str) -> Path:
    """Write a page in one step and return its path; for a folder, or a path without an ending, ``name`` inside it.

    Raises:
        RecordError: the file or its folder cannot be made; the system's reason is kept.
    """
    path = Path(out)
    if path.is_dir() or not path.suffix:
        path = path / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordError(f"cannot make the folder {path.parent}: {error.strerror or error}") from error
    atomic_write(path, text)
    return path
