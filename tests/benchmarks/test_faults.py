"""The damage that `benchmarks.faults` does, and its table."""

from __future__ import annotations

import collections
import random
import sys

import pytest
from benchmarks.damage import WAYS, Damage, drawn
from benchmarks.readable import kinds

from benchmarks import faults


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        ("cut", b"abcd"),
        ("flip", b"abcdgfghij"),
        ("delete", b"abcdghij"),
        ("insert", b"abcd\x01\x02efghij"),
        ("zeros", b"abcd\x00\x00ghij"),
        ("twice", b"abcdefefghij"),
        ("swap", b"abcdijghef"),
        ("noise", b"\x01\x02"),
    ],
)
def test_each_way_of_damage(way: str, expected: bytes) -> None:
    assert Damage(way, at=0.4, to=0.8, content=b"\x01\x02").of(b"abcdefghij") == expected
    assert Damage(way, at=1.0, to=1.0, content=b"").of(b"") == b""


def test_all_ways_are_drawn_and_most_change_something() -> None:
    generator = random.Random(0)
    found = [drawn(generator) for _ in range(200)]
    assert {damage.way for damage in found} == set(WAYS)
    assert sum(damage.of(b"some text that is long enough") == b"some text that is long enough" for damage in found) < 30


def test_the_table_and_the_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = [kind for kind in kinds() if kind.name in ("sketch", "csv: a.csv")]
    monkeypatch.setattr(faults, "kinds", lambda: chosen)
    monkeypatch.setattr(sys, "argv", ["faults", "--faults", "20"])
    assert faults.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| sketch", "| csv", "| all"]
    assert lines[4].split(" | ")[2:4] == ["2", "40"]
    monkeypatch.setattr(faults, "tally", lambda *_: (collections.Counter({"escaped": 1}), ["sketch: KeyError"], 0.0))
    assert faults.main() == 1
    assert capsys.readouterr().out.endswith("sketch: KeyError\n" * 2)
