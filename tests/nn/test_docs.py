from __future__ import annotations

import doctest
from importlib.metadata import version
from pathlib import Path

import pytest


@pytest.mark.skipif(version("transformers") < "5", reason="the page shows what transformers 5 prints")
def test_the_examples_of_the_page_run() -> None:
    page = Path(__file__).parents[2] / "docs" / "backbones.md"
    result = doctest.testfile(str(page), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 20
    assert result.failed == 0
