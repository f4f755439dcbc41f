"""Methods against forgetting at equal memory, with tuned strengths, five seeds and paired tests.

    python -m benchmarks.protect clinc150_lora cifar10 [--methods spectral ewc] [--out protect] [--workers 2]

Every method and seed is a run with a record below ``--out``; the same command again runs what is missing, and
``--table`` runs nothing. Each strength is chosen on the first tasks of a setting (`benchmarks.protect.protocol`).
Tables, JSON and figures lie in ``--out``/SETTING. Ctrl-C closes the running records, and the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.protect.methods import ENTRIES, Entry, chosen
from benchmarks.protect.pool import Pool
from benchmarks.protect.protocol import Protocol, is_available
from benchmarks.protect.results import results
from benchmarks.protect.settings import SETTINGS, Setting
from benchmarks.protect.table import write
from tangentcl.errors import TangentclError


def main(
    arguments: Sequence[str] | None = None,
    settings: Mapping[str, Setting] = SETTINGS,
    entries: tuple[Entry, ...] = ENTRIES,
) -> int:
    """Run what is missing and print the tables; 1 where a cell failed, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.protect", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("settings", nargs="+", choices=list(settings), metavar="SETTING", help=", ".join(settings))
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="labels or names (default: all)")
    parser.add_argument("--out", type=Path, default=Path("protect"), help="folder of records and tables")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--table", action="store_true", help="only make the tables of what is there")
    options = parser.parse_args(arguments)
    if options.workers < 1:
        parser.error(f"--workers must be at least 1, got {options.workers}")
    wanted = chosen(options.methods, entries)
    protocol = Protocol([settings[name] for name in options.settings], wanted, options.seeds, options.out.resolve())
    reasons: dict[str, str] = {}
    if not options.table:
        for entry in wanted:
            if not is_available(entry):
                _say(f"{entry.label}: not available, there is no method {entry.name!r}")
        try:
            reasons = _run(protocol, options.workers)
        except KeyboardInterrupt:
            _say("stopped; the same command goes on")
            return 130
    for setting in protocol.settings:
        print(write(results(protocol, setting, reasons), protocol.out / setting.name))
    return 1 if reasons else 0


def _run(protocol: Protocol, workers: int) -> dict[str, str]:
    """Run what is missing; why cells failed, by title."""
    cells = protocol.begin()
    _say(f"{protocol.expected()} runs left")
    pool = Pool(workers, protocol.out, protocol.follow, protocol.expected, _say)
    return {failure.cell.title: failure.reason for failure in pool.run(cells)}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except TangentclError as error:
        _say(str(error))
        sys.exit(2)
