"""JSON and TOML that is refused, and why."""

from __future__ import annotations

import pytest

from tangentcl.documents import Malformed, parse_json, parse_toml

DEEP = "[" * 200_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": }', "it is not JSON: Expecting value at line 1, column 7"),
        ("NaN", "it holds NaN, which is no JSON number"),
        ('[-Infinity, "a"]', "it holds -Infinity"),
        ("1e999", "it holds the number 1e999, which is too large"),
        ("1" * 5000, "it is not JSON that can be read: Exceeds the limit"),
        ('{"a": {"b": 1, "b": 2}}', "the key 'b' twice"),
        (DEEP, "nested too deeply"),
        ('{"a":' * 200_000, "nested too deeply"),
        (r'"\ud800"', "half of a character"),
        (r'{"\udfff": 1}', "half of a character"),
        (b"\xff\xfe{\x00}\x00", "not UTF-8 text"),
        ("\ufeff{}", "it is not JSON: Unexpected UTF-8 BOM"),
        (b"", "it is not JSON"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_json_that_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(Malformed, match=message):
        parse_json(text)


def test_json_that_is_read() -> None:
    read = parse_json(rb'{"a": [1, 2.5, true, null, "\ud83d\ude00 \\ud800"]}')
    assert read == {"a": [1, 2.5, True, None, "😀 \\ud800"]}
    assert parse_json("1" * 400) == int("1" * 400)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = ", "not valid TOML: Invalid value"),
        ("a = 1\na = 2", "not valid TOML: Cannot overwrite"),
        ("a = " + "1" * 5000, "not valid TOML: Exceeds the limit"),
        ("[b]\na = [0x" + "f" * 5000 + "]", "b.a must be a number of at most 64 bits, got one of 20000 bits"),
        ("a = " + DEEP, "nested too deeply"),
        ("[plan]\nlr = nan", "plan.lr must be a finite number, got nan"),
        ("a = [1.0, -inf]", "a must be a finite number, got -inf"),
        ("a = 2001-02-30", "not valid TOML"),
        (b"a = '\xff'", "not UTF-8 text"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_toml_that_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(Malformed, match=message):
        parse_toml(text)


def test_toml_that_is_read() -> None:
    assert parse_toml("\ufeffa = -9223372036854775808\nb = 0.5".encode()) == {"a": -(2**63), "b": 0.5}
