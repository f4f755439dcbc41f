"""The examples of README.md, CONTRIBUTING.md and docs/ are programs, experiment files and command lines that work.

Python examples with prompts run as doctests. A fenced python block without prompts runs too, and what it prints has to
equal the fenced text block right after it. All examples of a page share their names and run in an empty folder. What
cannot run says why, in the line before its fence: ``<!-- not run: needs a download -->``.
"""

from __future__ import annotations

import doctest
import os
import re
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import tangentcl
from tangentcl.cli import parser
from tangentcl.experiments.build import build_plan
from tangentcl.experiments.config import Experiment, experiment_from, load_experiment
from tangentcl.methods import METHODS, method_class

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"(?P<skip><!-- not run: .+? -->\n)?```(?P<language>\w+)[^\n]*\n(?P<body>.*?)^```$", re.M | re.S)
PRINTED_BY_TRANSFORMERS_5 = {"backbones.md"}
OUTPUT = re.compile(r"\s*```text\n(.*?)^```$", re.M | re.S)


def page_id(page: Path) -> str:
    return page.name


def blocks(page: Path, language: str) -> list[str]:
    """Bodies of the fenced blocks of a language, without those that say why they do not run."""
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [m["body"] for m in found if m["language"] == language and not m["skip"]]


def as_doctest(text: str) -> tuple[str, list[str]]:
    """``text`` with every plain python block as one call ``run_block(i)``, and the blocks."""
    sources: list[str] = []

    def replace(match: re.Match[str]) -> str:
        if match["language"] != "python" or ">>>" in match["body"]:
            return match[0]
        if match["skip"]:
            return ""
        sources.append(match["body"])
        printed = OUTPUT.match(text, match.end())
        expected = re.sub(r"^$", "<BLANKLINE>", printed[1].rstrip("\n"), flags=re.M) + "\n" if printed else ""
        return f"\n>>> run_block({len(sources) - 1})\n{expected}\n"

    return FENCE.sub(replace, text), sources


def check_names(experiment: Experiment) -> None:
    """Plan and methods take what the experiment gives them; sources and backbones may not be on this machine."""
    for entry in experiment.methods:
        build_plan({**experiment.plan, **entry.plan}, 0)
        if entry.name in METHODS:
            known = set(method_class(entry.name).__init__.__annotations__)
            assert set(entry.keywords) <= known, f"{entry.name} takes {sorted(known)}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_python_examples_print_what_the_page_says(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.name in PRINTED_BY_TRANSFORMERS_5 and version("transformers") < "5":
        pytest.skip("the page shows what transformers 5 prints")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # an example may add the current folder
    text, sources = as_doctest(page.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": f"examples of {page.name}"}

    def run_block(i: int) -> None:
        exec(compile(sources[i], f"{page.name}, python block {i + 1}", "exec"), names)

    names["run_block"] = run_block
    test = doctest.DocTestParser().get_doctest(text, names, page.name, str(page), 0)
    test.globs = names  # get_doctest copies; blocks and prompts share one set of names
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    result = runner.run(test, clear_globs=False)
    assert result.failed == 0
    assert result.attempted == len(test.examples)
    assert result.attempted > 0 or "```python" not in text


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_experiment_files_name_only_what_exists(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("TANGENTCL_DATA", "TANGENTCL_MODELS"):
        monkeypatch.setenv(variable, os.environ.get(variable, "/somewhere"))
    for body in blocks(page, "toml"):
        document = tomllib.loads(body)
        document.setdefault("method", [{"name": "ncm"}])  # a block may show a single table
        check_names(experiment_from(document, where=page.name))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_command_lines_are_understood(page: Path) -> None:
    for body in blocks(page, "console"):
        for line in re.sub(r"\\\n", " ", body).splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if line.startswith("$ ") and "tangentcl" in words:
                arguments = words[words.index("tangentcl") + 1 :]
                options = parser().parse_args(arguments)
                if options.command == "run" and (ROOT / options.file).exists():
                    check_names(load_experiment(ROOT / options.file, settings=options.settings, seeds=options.seeds))


def test_the_readme_begins_with_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first = next(FENCE.finditer(text))
    assert [line.split("#")[0].strip() for line in first["body"].splitlines()] == ["make demo", "make test"]
    assert text[: first.start()].count("\n") < 8


def test_files_named_in_the_tree_of_the_readme_exist() -> None:
    tree = next(body for body in blocks(ROOT / "README.md", "text") if body.startswith("src/tangentcl/"))
    named = set(re.findall(r"\b\w+\.(?:py|npz|j2)\b", tree))
    missing = named - {path.name for path in (ROOT / "src").rglob("*")} - {"html.j2"}
    assert named
    assert not missing


def test_every_public_name_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    documented = {line.split(".")[-1] for line in page.splitlines() if line.startswith("::: ")}
    assert set(tangentcl.__all__) <= documented


def test_every_page_is_in_the_navigation() -> None:
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert {page.name for page in (ROOT / "docs").glob("*.md")} == set(re.findall(r"\b\w+\.md\b", config))
