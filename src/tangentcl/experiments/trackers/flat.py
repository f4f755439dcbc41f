"""Nested settings as one table of dotted names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Every setting under its dotted name; a list becomes JSON, and what is None or empty is left out.

    >>> flat({"seed": 0, "plan": {"lr": 0.1, "betas": (0.9, 0.99)}, "transform": {}})
    {'seed': 0, 'plan.lr': 0.1, 'plan.betas': '[0.9, 0.99]'}
    """
    found: dict[str, bool | int | float | str] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        elif isinstance(value, (bool, int, float, str)):
            found[name] = value
        elif isinstance(value, (list, tuple)):
            found[name] = json.dumps(value, default=str)
        elif value is not None:
            found[name] = str(value)
    return found
