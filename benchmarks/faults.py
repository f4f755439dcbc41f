"""Damage to every kind of file that the library reads, and whether it is noticed.

    python -m benchmarks.faults [--faults N] [--seed S]

Each row is a kind of file (see `readable`), each fault one of the ways in `damage`. ``refused``: an error of the
library that names the file. ``unchanged``: what is read is what was written, as when a blank becomes another blank.
``other``: a file without a checksum that is still valid, and says something else; nobody can tell. ``silently wrong``
(other content in spite of a checksum) and ``escaped`` (another error) would be faults of the library: the program ends
with 1.
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.damage import Damage, drawn
from benchmarks.readable import Kind, kinds
from tangentcl.errors import TangentclError

OUTCOMES = ("refused", "unchanged", "other", "silently wrong", "escaped")
SHARE_OF_SLOW = 10  # a tenth of the faults where reading takes long


class Prepared:
    """Valid files of a kind in a folder, and what reading them gives."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        kind.make(folder)
        self.path = folder / kind.file
        self.whole = self.path.read_bytes()
        self.content = kind.read(folder)
        if kind.read(folder) != self.content:
            raise AssertionError(f"reading {kind.name} twice gives two contents")

    def outcome(self, damage: Damage) -> tuple[str, str]:
        """What comes of one fault, one of ``OUTCOMES``, and the error's text; the file is whole again afterwards."""
        self.path.write_bytes(damage.of(self.whole))
        try:
            found = self.kind.read(self.folder)
        except TangentclError as error:
            named = self.path.name in str(error) or str(self.folder) in str(error)
            return ("refused", str(error)) if named else ("escaped", f"does not name the file: {error}")
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            return "escaped", f"{type(error).__name__}: {error}"
        finally:
            self.path.write_bytes(self.whole)
        if found == self.content:
            return "unchanged", ""
        return ("silently wrong" if self.kind.checked else "other"), ""


def tally(kind: Kind, faults: Iterable[Damage]) -> tuple[collections.Counter[str], list[str], float]:
    """Outcomes by name, what escaped, and the longest time that one reading took."""
    found: collections.Counter[str] = collections.Counter()
    escaped, longest = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        prepared = Prepared(kind, Path(folder))
        for damage in faults:
            begun = time.perf_counter()
            outcome, said = prepared.outcome(damage)
            longest = max(longest, time.perf_counter() - begun)
            found[outcome] += 1
            if outcome in ("silently wrong", "escaped"):
                escaped.append(f"{kind.name}: {damage}: {outcome} {said}")
    return found, escaped, longest


def main() -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=1000, help="of each kind of file (default 1000)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows: dict[str, collections.Counter[str]] = {}
    bad: list[str] = []
    slowest = 0.0
    checked: dict[str, bool] = {}
    for kind in kinds():
        generator = random.Random(options.seed)
        count = options.faults // (SHARE_OF_SLOW if kind.slow else 1)
        found, escaped, longest = tally(kind, (drawn(generator) for _ in range(count)))
        rows.setdefault(kind.group, collections.Counter()).update(found)
        rows[kind.group]["kinds"] += 1
        checked[kind.group] = checked.get(kind.group, False) or kind.checked
        bad += escaped
        slowest = max(slowest, longest)
    print(table(rows, checked))
    print(f"\nthe slowest reading took {slowest:.2f} s")
    for line in bad:
        print(line)
    return 1 if bad else 0


def table(rows: dict[str, Any], checked: dict[str, bool]) -> str:
    """The outcomes as a Markdown table, one line per group and one for all."""
    lines = [("files", "checksum", "kinds", "faults", *OUTCOMES)]
    total: collections.Counter[str] = collections.Counter()
    for group, found in [*rows.items(), ("all", total)]:
        numbers = [found["kinds"], sum(found[name] for name in OUTCOMES), *(found[name] for name in OUTCOMES)]
        seal = "" if found is total else "yes" if checked[group] else "no"
        lines.append((group, seal, *(f"{number:,}".replace(",", " ") for number in numbers)))
        total.update(found if found is not total else {})
    text = ["| " + " | ".join(line) + " |" for line in lines]
    text.insert(1, "| --- | --- |" + " ---: |" * (len(lines[0]) - 2))
    return "\n".join(text)


if __name__ == "__main__":
    sys.exit(main())
