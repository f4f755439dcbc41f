"""JSON and TOML from files: whatever is wrong with a text is one error, and nothing ambiguous is accepted."""

from __future__ import annotations

import json
import math
import re
import sys
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # half of a character that JSON writes as two


class Malformed(ValueError):
    """A text that is not the document it should be."""


class OutOfRange(Malformed):
    """A number in a document that is not finite, or needs more than 64 bits."""


def parse_json(content: str | bytes) -> Any:
    """The value of a JSON text, UTF-8 if given as bytes.

    Stricter than Python's own reader where two programs would read two things: no NaN or infinity, no key twice in an
    object, no half characters.

    Raises:
        Malformed: what is wrong, with its place where there is one.

    >>> parse_json('{"a": [1, 2.5]}')
    {'a': [1, 2.5]}
    >>> parse_json('{"a": 1, "a": 2}')
    Traceback (most recent call last):
        ...
    tangentcl.documents.Malformed: it has the key 'a' twice in one object
    """
    text = _text(content)
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise Malformed(f"it is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except Malformed:
        raise
    except ValueError as error:  # a whole number of thousands of digits
        raise Malformed(f"it is not JSON that can be read: {error}") from error
    except RecursionError as error:
        raise Malformed("it is nested too deeply to be read") from error
    if _SURROGATE.search(text):
        _check_characters(value)
    return value


def parse_toml(content: str | bytes) -> dict[str, Any]:
    """The table of a TOML text, UTF-8 if given as bytes; a byte order mark, which some editors write, is no error.

    Raises:
        Malformed: what is wrong. OutOfRange: a number that is not finite or needs more than 64 bits.

    >>> parse_toml("a = 1")
    {'a': 1}
    >>> parse_toml("a = 9999999999999999999")
    Traceback (most recent call last):
        ...
    tangentcl.documents.OutOfRange: a must be a number of at most 64 bits, got 9999999999999999999
    """
    try:
        table = tomllib.loads(_text(content).removeprefix("\ufeff"))
        _check_numbers(table, "")
    except Malformed:
        raise
    except ValueError as error:  # TOMLDecodeError, or a number or date that Python cannot hold
        raise Malformed(f"it is not valid TOML: {error}") from error
    except RecursionError as error:
        raise Malformed("it is nested too deeply to be read") from error
    return table


def _text(content: str | bytes) -> str:
    if isinstance(content, str):
        return content
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed(f"it is not UTF-8 text ({error.reason} at byte {error.start})") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        raise Malformed(f"it has the key {next(key for key in keys if keys.count(key) > 1)!r} twice in one object")
    return table


def _no_number(text: str) -> Any:
    raise Malformed(f"it holds {text}, which is no JSON number; null stands for an unknown one")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Malformed(f"it holds the number {text:.40}, which is too large")
    return value


def _check_characters(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise Malformed("it holds half of a character (a lone surrogate), which is no text") from error


def _check_numbers(value: Any, place: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _check_numbers(item, f"{place}.{key}" if place else key)
    elif isinstance(value, list):
        for item in value:
            _check_numbers(item, place)
    elif isinstance(value, float) and not math.isfinite(value):
        raise OutOfRange(f"{place} must be a finite number, got {value}; leave it out where there is none")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise OutOfRange(f"{place} must be a number of at most 64 bits, got {shortened(value)}")


def shortened(value: int) -> str:
    """A whole number as text, also one of more digits than Python writes out."""
    return str(value) if abs(value) < 10**40 else f"one of {value.bit_length()} bits"
