"""Numbers that others published, kept beside our own so that a table can show both."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, nearest


@dataclass(frozen=True)
class Published:
    """One published result of the stream of an experiment; a table ``[[published]]`` of its file.

    Attributes:
        label: the method, as published.
        source: where it stands: paper, table, protocol.
        ours: label of the method of the experiment that reproduces it; empty where none does.
        average, last: average and last accuracy in percent, None where not given.
        average_std, last_std: their deviations.
        note: what else a reader has to know.

    >>> Published("RanPAC", "its repository", last=92.2).last
    92.2
    """

    label: str
    source: str
    ours: str = ""
    average: float | None = None
    average_std: float | None = None
    last: float | None = None
    last_std: float | None = None
    note: str = ""

    def describe(self) -> dict[str, Any]:
        """As a table of an experiment, without what is not given."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value not in (None, "")}


def published_from(table: object, where: str) -> Published:
    """Check one ``[[published]]``; ``where`` begins every error.

    Raises:
        ConfigError: an unknown or missing key, or a value of a wrong type.

    >>> published_from({"label": "RanPAC", "source": "its repository", "last": 92.2}, "x.toml").describe()
    {'label': 'RanPAC', 'source': 'its repository', 'last': 92.2}
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: published must be tables, [[published]], got {table!r}")
    fields = {field.name: field.type for field in dataclasses.fields(Published)}
    for key, value in table.items():
        if key not in fields:
            raise ConfigError(f"{where}: [[published]] does not take {key!r}.{nearest(key, fields)}")
        if fields[key] == "str":
            fits, kind = isinstance(value, str), "a text"
        else:
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            fits, kind = number and math.isfinite(value) and 0 <= value <= 100, "a percentage from 0 to 100"
        if not fits:
            raise ConfigError(f"{where}: {key} of a [[published]] must be {kind}, got {value!r}")
    for key in ("label", "source"):
        if not table.get(key):
            raise ConfigError(f"{where}: every [[published]] needs a {key}, got {dict(table)!r}")
    return Published(**table)
