"""The section Theory quantities: every number has its light beside it, and what is missing is left out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from tangentcl.records import TaskTheory, write_checksums
from tangentcl.records.theory import write_theory
from tangentcl.reports.axes import Series
from tangentcl.reports.html import write_report
from tangentcl.reports.theory_figures import over_tasks, risk_lines, short, task_map
from tangentcl.reports.theory_lines import CERTIFICATE, more
from tangentcl.reports.theory_maps import between
from tangentcl.reports.theory_section import Theories, theory_section
from tangentcl.reports.theory_text import light, line, sentences

from .conftest import checked_page, write_run


def theory(t: int, level: str | None = "green", *, learned: bool = True, head: bool = True) -> TaskTheory:
    """Made-up quantities of task t."""

    def past(real: bool) -> list[dict[str, Any]]:
        known = head or not real
        return [
            {"task": k, "name": f"<T{k + 1}>", "n": 100, "overlap": 0.5 + 0.1 * k, "overlap_centred": 0.1 * (t - k),
             "cosines": [0.9 - 0.1 * k, 0.2], "interplay": 100.0 if known else None,
             "interplay_rms": (t + 0.1 * k + 10 * real) if known else None,
             "rademacher": 0.2 * t if known else None, "rademacher_back": 0.2 * k if known else None}
            for k in range(t)
        ]  # fmt: skip

    before = {
        "ridge": 0.3, "radius": 1.5, "n": 100, "n_available": 250, "width": 8, "past": past(False),
        "risk": {"ridges": [0.1, 0.3, 1.0], "loo": [0.5, 0.2, 0.4], "gcv": [0.5, 0.2, 0.4],
                 "at_ridge": {"loo": 0.2, "gcv": 0.2}, "of_nothing": 1.0},
        "dimension": {"effective": 40.0, "participation": 3.0, "rank": 100}, "rademacher_own": 0.2 * t,
        "old_energy": {"energy": 0.5, "directions": 9} if t else None, "class_drift": [],
        "views": {"kind": "random training views of a sample", "views": 3, "correlation": 0.5, "effective": 150.0,
                  "times": 1.5},
    }  # fmt: skip
    laziness = None
    if level:
        laziness = {"feature_change": 0.1, "tangent_change": 0.2, "linearisation_error": 7.0, "light": level,
                    "sentence": f"Why {level}."}  # fmt: skip
    after = {
        "dimension": {"effective": 44.0, "participation": 3.0, "rank": 100}, "move": 0.5, "past": past(True),
        "radius": {"all": 9.0, "head": 2.0 if head else None},
        "anchor": {"kappa": 1e-3, "weight_decay": 5e-3, "efficiency": 2 / 7, "decoupled": True},
        "rademacher_own": 0.2 * t if head else None, "old_energy": {"energy": 0.25, "directions": 9} if t else None,
        "staleness": {"own": [{"class": 0, "name": "a", "cosine": 0.99}],
                      "old": [{"task": 0, "class": c, "name": f"<c{c}>", "cosine": 0.9 + 0.01 * c} for c in range(t)]},
        "laziness": laziness, "no_laziness": None if level else "it is <random>",
    }  # fmt: skip
    status = "learned" if learned else "before"
    return TaskTheory(t, f"T{t + 1}", {"status": status, "before": before, "after": after if learned else None})


MADE = [theory(0), theory(1, "amber"), theory(2, "red"), theory(3, None), theory(4, learned=False)]


def test_sentences_say_what_was_derived() -> None:
    said = sentences(MADE[2])
    assert said == [
        "A ridge of strength 0.3 on its features would err by 0.2 on new samples (squared, leave-one-out), 1 without "
        "learning; it uses 40 directions for 100 samples.",
        "The change of the method's head alone moved the outputs of task 2 (<T2>) most, by 12.1 per sample; the ridge "
        "would by 2.1 per sample (root mean square over samples, all outputs).",
        "50 % of its features lay in the 9 directions of past tasks before training, 25 % after.",
        "3 views of a sample (random training views) are worth 1.50 independent ones.",
        "Of the stored class means, <c0>'s is predicted to be furthest from where it would be now: cosine 0.900.",
        "Anchor and weight decay (0.005) together pull parameters to 29 % of old values. The decay is decoupled, which "
        "this does not see.",
    ]
    assert len(sentences(MADE[0])) == 3  # no past: neither interplay, nor old space, nor old class means
    assert [s for s in sentences(MADE[4]) if "would move the outputs of task 4 (<T4>) most: by 4.3" in s]


def test_lines_of_the_table_have_the_light_first_and_both_ends_of_a_change() -> None:
    assert [light(t) for t in MADE] == [
        "✓ holds",
        "~ with care",
        "✗ does not hold",
        "? not measured",
        "? not measured",
    ]
    cells = line(MADE[2])
    assert cells[:6] == ["3: T3", "✗ does not hold", "100 of 250", "0.3", "0.2", "40 → 44"]
    assert cells[6:] == ["3", "1.5", "2", "9", "50 → 25", "1.5", "0.99 / 0.9", "28.6", "–", "–"]
    assert line(MADE[4])[8:11] == ["–", "–", "50"]


def test_evidence_and_certificate_are_called_what_they_are() -> None:
    made = theory(0)
    certificate = {"bound": 0.3456, "error": 0.1, "kl": 12.5, "sigma": 0.0316, "n": 100, "delta": 0.05}
    values = {
        **made.values,
        "before": {**(made.before or {}), "evidence": {"ridge": 0.7, "per_label": -0.25, "noise": 0.05}},
        "after": {**(made.after or {}), "certificate": certificate},
    }
    found = TaskTheory(0, "T1", values)
    assert (
        "Its labels are likeliest, taken as Gaussian, under a ridge of strength 0.7 (log evidence -0.25 per label, "
        "noise 0.05); the theory's is 0.3." in sentences(found)
    )
    assert sentences(found)[-1] == (
        "PAC-Bayes, for the classifier with noise of 0.0316 on what trains and whatever the light says: with 95 % "
        "confidence it errs on at most 34.6 % of new samples of this task, where it errs on 10.0 % of the samples it "
        "learned (divergence 12.5 by the move of weights)."
    )
    assert line(found)[-2:] == ["0.7", "34.6"]
    certificate["draws"] = 30
    assert "where it errs on at most 10.0 % of the samples" in sentences(found)[-1]
    certificate["bound"] = 1.2
    assert "120.0 % of new samples of this task, which says nothing (" in sentences(found)[-1]
    figures = dict(more("x", [found, found]))
    assert "bound on new samples: 1.2, 1.2" in figures[CERTIFICATE]
    assert CERTIFICATE not in dict(more("x", MADE))


def test_matrices_between_tasks_have_every_number_in_its_place() -> None:
    found = between(MADE[:3], "before", "interplay_rms")
    assert found is not None
    np.testing.assert_array_equal(np.isfinite(found), np.tril(np.ones((3, 3)), -1))
    assert found[2, 1] == pytest.approx(2.1)
    overlap = between(MADE[:3], "after", "overlap_centred", mirrored="overlap_centred", own="1")
    assert overlap is not None
    np.testing.assert_allclose(overlap, overlap.T)
    np.testing.assert_allclose(np.diag(overlap), 1.0)
    terms = between(MADE[:3], "before", "rademacher", mirrored="rademacher_back", own="rademacher_own")
    np.testing.assert_allclose(terms, 0.2 * np.arange(3)[:, None].repeat(3, axis=1))  # type: ignore[arg-type]
    assert between([theory(0, head=False), theory(1, head=False)], "after", "interplay_rms") is None


def test_figures_are_valid_and_say_their_numbers() -> None:
    matrix = np.array([[np.nan, 2.0], [0.5, np.nan]])
    svg = task_map(
        matrix, ["1: a ✓", "2: <b> ✗"], ["1: a", "2: <b>"], row_title="r", column_title="c", name="m", title="t"
    )
    assert "2: &lt;b&gt; ✗: 0.5, none" in svg
    many = task_map(np.eye(30), ["x"] * 30, ["x"] * 30, row_title="r", column_title="c", name="m", title="t")
    lines = over_tasks(
        [Series("up", 0, np.array([1e-4, 3.0, np.nan]))], ["✓ holds"] * 3, "y", name="l", title="t", log=True
    )
    risks = risk_lines([("task 1", 0, np.array([0.1, 1.0]), np.array([0.3, 0.2]))], name="k", title="t")
    assert "task 1: lowest at 1, 0.2" in risks
    assert lines.count(">✓ holds<") == 3
    for text in (svg, many, lines, risks):
        ElementTree.fromstring(text)
    assert [short(v) for v in (123456.0, 99999.0, -0.5, float("inf"))] == ["1.23e+05", "99999", "-0.5", "–"]


def test_the_page_has_a_light_beside_every_statement(tmp_path: Path) -> None:
    folders = [write_run(tmp_path, method, 0) for method in ("finetune", "ncm", "replay")]
    for found in MADE:
        write_theory(folders[0], found)
    write_checksums(folders[0])
    write_theory(folders[1], theory(0, head=False))
    write_theory(folders[1], TaskTheory(1, "T2", {"status": "refused", "reason": "no <features>"}))
    write_checksums(folders[1])
    path = write_report(folders, tmp_path / "report.html")
    text = checked_page(path)
    page = path.read_text(encoding="utf-8")
    section = page[page.index('<section id="theory">') : page.index('<section id="losses">')]
    assert '<a href="#theory">' in page
    assert "Interplay (Q1)" in text
    items = re.findall(r"<li>(.*?)</li>", section, re.S)
    statements = [item for item in items if not item.startswith("Task ")]
    assert len(statements) == sum(len(sentences(t)) for t in MADE) + len(sentences(theory(0)))
    assert all(item.startswith('<span class="light ') for item in statements)
    assert 'class="light red">✗ does not hold</span>' in section
    assert "Task 2: no &lt;features&gt;" in section
    assert "it is &lt;random&gt;" in section
    assert "replay" not in section  # nothing was computed for it
    assert "Why amber." in section
    assert "Theory's ridge" in text[text.index("Definitions") :]


def test_damage_is_listed_and_a_page_without_theory_has_no_section(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "finetune", 0)
    assert 'id="theory"' not in write_report([folder], tmp_path / "a.html").read_text(encoding="utf-8")
    write_theory(folder, MADE[0]).write_text("{")
    page = write_report([folder], tmp_path / "b.html").read_text(encoding="utf-8")
    assert "The theory quantities of" in page
    part = theory_section("s", [Theories("x", 0, [(0, []), (1, [MADE[0]])])])
    assert part["methods"][0]["seed"] == "seed 1"
    assert part["methods"][0]["maps"] == []
