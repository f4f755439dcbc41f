from __future__ import annotations

import pytest

from tangentcl.errors import ConfigError
from tangentcl.records import Published, published_from

GOOD = {"label": "X", "source": "a paper, table 1", "average": 90, "last": 80.5, "last_std": 0.2}


def test_a_table_becomes_a_result_and_back() -> None:
    found = published_from(GOOD, "f.toml")
    assert found == Published("X", "a paper, table 1", average=90, last=80.5, last_std=0.2)
    assert found.describe() == GOOD


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lsat": 1.0}, "Did you mean 'last'"),
        ({"last": "80"}, "last of a .* must be a percentage from 0 to 100, got '80'"),
        ({"last": 0.9 * 1000}, "percentage from 0 to 100, got 900"),
        ({"last": True}, "percentage"),
        ({"last": float("nan")}, "percentage"),
        ({"source": ""}, "needs a source"),
        ({"label": 3}, "label of a .* must be a text"),
    ],
)
def test_mistakes_are_answered(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        published_from({**GOOD, **change}, "f.toml")
    with pytest.raises(ConfigError, match="must be tables"):
        published_from(3, "f.toml")
