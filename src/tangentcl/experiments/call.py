"""A table of an experiment file as the keywords of one constructor, checked against its signature."""

from __future__ import annotations

import inspect
import os
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from tangentcl.errors import ConfigError, nearest

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def call(
    function: Callable[..., Any],
    keywords: Mapping[str, Any],
    *,
    table: str,
    given: Sequence[Any] = (),
    aliases: Sequence[str] = (),
) -> Any:
    """Call ``function(*given, **keywords)`` after checking keys and types of a table against its signature.

    Args:
        table: name of the table in errors.
        aliases: further keys that the caller has already taken out, to be named among the known ones.

    Raises:
        ConfigError: a key that the function does not take (with the nearest it does), one that it lacks, or a value
            of another type than the signature asks for.

    >>> call(round, {"ndigits": 1}, table="example", given=(2.25,))
    2.2
    """
    parameters = list(_signature(function).parameters.values())[len(given) :]
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for key, value in keywords.items():
        if key in named:
            _check_type(table, key, value, named[key].annotation)
        elif not open_ended:
            raise ConfigError(f"[{table}] does not know {key!r}.{nearest(key, [*named, *aliases])}")
    for name, p in named.items():
        if p.default is p.empty and name not in keywords:
            raise ConfigError(f"[{table}] lacks {name!r}, which {function.__name__} needs")
    return function(*given, **keywords)


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """Keywords that ``function`` fills in by itself, without those that are None, which TOML cannot hold.

    >>> def scaled(x, factor=2.0, offset=None): return x
    >>> defaults(scaled)
    {'factor': 2.0}
    """
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty and p.default is not None}


def fits(value: Any, hint: Any) -> bool:
    """Whether a value read from TOML can stand for a type hint; a hint that TOML has no value for accepts anything.

    >>> fits([0.6, 1], tuple[float, float]), fits(True, int), fits("adam", Literal["sgd", "adamw"])
    (True, False, False)
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if hint is types.NoneType:
        return value is None
    if hint in _WORDS:
        accepted = (int, float) if hint is float else hint
        return isinstance(value, accepted) and (hint is bool or not isinstance(value, bool))
    kind = origin or hint
    if not isinstance(kind, type):
        return True
    if issubclass(kind, os.PathLike):
        return isinstance(value, (str, os.PathLike))
    if issubclass(kind, Mapping):
        return isinstance(value, Mapping)
    if issubclass(kind, Collection):
        return isinstance(value, (list, tuple)) and _items_fit(value, kind, arguments)
    return True


def _items_fit(value: Sequence[Any], kind: type, arguments: tuple[Any, ...]) -> bool:
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        return len(value) == len(arguments) and all(fits(item, hint) for item, hint in zip(value, arguments))
    return not arguments or all(fits(item, arguments[0]) for item in value)


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function, eval_str=True)
    except NameError:  # a hint that is imported for type checkers only: keys are checked, types are not
        plain = inspect.signature(function)
        return plain.replace(parameters=[p.replace(annotation=p.empty) for p in plain.parameters.values()])


def _check_type(table: str, key: str, value: Any, hint: Any) -> None:
    if hint is inspect.Parameter.empty or fits(value, hint):
        return
    choices = [choice for choice in get_args(hint) if isinstance(choice, str)]
    near = nearest(value, choices) if isinstance(value, str) and choices else ""
    raise ConfigError(f"[{table}] {key} must be {_in_words(hint)}, got {value!r}.{near}")


def _in_words(hint: Any) -> str:
    """A type hint as a user reads it.

    >>> _in_words(tuple[float, float]), _in_words(int | None)
    ('a list of 2 numbers', 'a whole number or left out')
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is types.NoneType:
        return "left out"
    if hint in _WORDS:
        return _WORDS[hint]
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_in_words(argument) for argument in arguments))
    kind = origin or hint
    if issubclass(kind, os.PathLike):
        return "text"
    if issubclass(kind, Mapping):
        return "a table"
    several = {"a number": "numbers", "a whole number": "whole numbers", "text": "texts"}
    of = several.get(_in_words(arguments[0]), "values") if arguments else "values"
    fixed = kind is tuple and arguments and arguments[-1] is not Ellipsis
    return f"a list of {len(arguments)} {of}" if fixed else f"a list of {of}"
