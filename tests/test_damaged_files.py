"""Damage to every kind of file: what was written comes back, or an error that names the file. Nothing else."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from benchmarks.damage import LONGEST, WAYS, Damage
from benchmarks.faults import Prepared
from benchmarks.readable import Kind, kinds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tangentcl.errors import DataError

KINDS = kinds()
LIMIT = 30.0  # seconds for one reading: far above what it takes, far below what would be called a hang
SHARES = st.floats(0, 1)
DAMAGES = st.builds(Damage, st.sampled_from(WAYS), SHARES, SHARES, st.binary(max_size=LONGEST))
PRINTABLE = st.text("0123456789aeEtruflsnN{}[]\",:.+-=#' \n\\/u", max_size=LONGEST).map(str.encode)
TEXTS = st.builds(Damage, st.sampled_from(("insert", "noise")), SHARES, SHARES, PRINTABLE)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    kind: Kind = request.param
    return Prepared(kind, tmp_path_factory.mktemp("files"))


def check(prepared: Prepared, damage: Damage) -> None:
    begun = time.perf_counter()
    outcome, said = prepared.outcome(damage)
    assert outcome in ("refused", "unchanged", "other"), f"{prepared.path}: {outcome}: {said}"
    assert time.perf_counter() - begun < LIMIT


def searched(prepared: Prepared, examples: int) -> None:
    @settings(
        max_examples=max(examples // (10 if prepared.kind.slow else 1), 2),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(DAMAGES | TEXTS)
    def anything(damage: Damage) -> None:
        check(prepared, damage)

    anything()


@pytest.mark.filterwarnings("ignore")
def test_damage_is_noticed(prepared: Prepared) -> None:
    searched(prepared, 60)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_much_damage_is_noticed(prepared: Prepared) -> None:
    searched(prepared, 400)


def test_the_check_notices_what_it_is_for(tmp_path: Path) -> None:
    """A reader that forgives damage, one that breaks, and one whose error names no file are told apart."""

    def broken(folder: Path) -> str:
        text = (folder / "a.txt").read_text()
        return {"good": text, "bad!": "good"}.get(text) or str(int(text))

    def make(folder: Path) -> None:
        (folder / "a.txt").write_text("good")

    def error(folder: Path) -> str:
        if (folder / "a.txt").read_text() != "good":
            raise DataError("something is wrong")
        return "good"

    made = Prepared(Kind("forgiving", "a.txt", make, broken, checked=True), tmp_path)
    assert made.outcome(Damage("noise", 0, 0, b"good"))[0] == "unchanged"
    assert made.outcome(Damage("noise", 0, 0, b"7")) == ("silently wrong", "")
    assert made.outcome(Damage("cut", 0.5, 0, b""))[0] == "escaped"
    assert made.path.read_bytes() == b"good"
    nameless = Prepared(Kind("nameless", "a.txt", make, error), tmp_path)
    assert nameless.outcome(Damage("cut", 0.5, 0, b""))[0] == "escaped"
