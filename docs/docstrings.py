"""Docstrings as Markdown for the reference: doctests become code blocks, and formulas show their TeX."""

from __future__ import annotations

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"(?:^>>> .*\n?(?:^(?!\s*$).*\n?)*)", re.M)
ROLE = re.compile(r":(?:math|class|func|meth|mod):`([^`]+)`")
FORMULA = re.compile(r"^\.\. math:: *(.*(?:\n[ \t]+\S.*)*)$", re.M)


def as_markdown(text: str) -> str:
    """``text`` without what only reStructuredText understands."""
    text = FORMULA.sub(lambda m: f"```text\n{m[1].strip()}\n```", text)
    text = ROLE.sub(r"`\1`", text)
    return DOCTEST.sub(lambda m: f"```pycon\n{m[0].rstrip()}\n```\n", text)


class Docstrings(griffe.Extension):
    """Named in mkdocs.yml."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called by griffe for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
