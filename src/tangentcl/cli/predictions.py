"""Rows of ``tangentcl predict``: made batch by batch, kept when a sample fails, written as CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from tangentcl.data.unlabelled_file import UnlabelledFile, read_unlabelled
from tangentcl.errors import ConfigError, DataError
from tangentcl.files import write_whole
from tangentcl.serving.predictor import Predictor, softmax

SAY_EVERY_SECONDS = 10.0


@dataclass(frozen=True)
class Row:
    """One sample: its id, and the classes with their scores, the most likely first."""

    input: str
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Predictions:
    """What was predicted, and what was not.

    Attributes:
        rows: in the order of the samples. n: samples there are. top: classes per row.
        skipped: id and reason of each sample that was left out.
        error: what ended it; None where all is done.
    """

    rows: list[Row]
    n: int
    top: int
    skipped: list[tuple[str, str]]
    error: str | None = None

    def to_csv(self) -> str:
        """A header, and a line for each row: input, class, score, class_2, score_2, ..."""
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        more = [f"{name}_{k}" for k in range(2, self.top + 1) for name in ("class", "score")]
        lines.writerow(["input", "class", "score", *more])
        for row in self.rows:
            lines.writerow([row.input, *(value for name, score in row.top for value in (name, f"{score:.6f}"))])
        return text.getvalue()

    def to_jsonl(self) -> str:
        """One object in each line."""
        return "".join(json.dumps(self._entry(row), ensure_ascii=False) + "\n" for row in self.rows)

    def to_json(self, file: str | None) -> str:
        """One document; with a file, where the rows are in place of them."""
        rows: dict[str, Any] = {"predictions": [self._entry(row) for row in self.rows]}
        if file is not None:
            rows = {"file": file, "n": len(self.rows)}
        skipped = [{"input": name, "reason": reason} for name, reason in self.skipped]
        return json.dumps({**rows, "left_out": skipped, "error": self.error}, indent=1, ensure_ascii=False)

    def write(self, path: Path) -> None:
        """In one piece, as the name ends: .csv or .jsonl.

        Raises:
            ConfigError: the file cannot be written.
        """
        text = self.to_csv() if path.suffix.lower() == ".csv" else self.to_jsonl()
        try:
            write_whole(path, text.encode())
        except OSError as error:
            raise ConfigError(f"the predictions cannot be written to {path}: {error.strerror or error}") from error

    def _entry(self, row: Row) -> dict[str, Any]:
        (name, score), *_ = row.top
        entry: dict[str, Any] = {"input": row.input, "class": name, "score": round(score, 6)}
        if self.top > 1:
            entry["top"] = [{"class": name, "score": round(score, 6)} for name, score in row.top]
        return entry


def predictions(
    predictor: Predictor,
    paths: Sequence[Path],
    *,
    column: str | None = None,
    task: int | str | None = None,
    top: int = 1,
    skip: bool = False,
) -> Predictions:
    """Predict every sample of some files; an error in a sample ends it, and what was predicted is returned.

    Args:
        predictor: of a run or an export.
        paths: files or folders. column: of the samples, see `read_unlabelled`.
        task: choose among its classes. top: classes per row, at most as many as there are.
        skip: leave out samples that cannot be used.

    Raises:
        DataError, ConfigError: a file that cannot be read, or no such task or column: nothing was predicted then.
    """
    modality = predictor.description.modality
    found = UnlabelledFile.joined([read_unlabelled(path, modality, column=column) for path in paths])
    top = min(top, len(predictor.classes_of(task)))
    skipped = dict(found.bad)
    if skipped and not skip:
        first = min(skipped)
        more = f" ({len(skipped)} of {len(found)} samples cannot be used)" if len(skipped) > 1 else ""
        return Predictions([], len(found), top, [], f"{found.ids[first]}: {skipped[first]}{more}.")
    usable = np.array([i for i in range(len(found)) if i not in skipped], dtype=np.int64)
    rows: dict[int, Row] = {}
    progress, error = _Progress(len(usable)), None

    def left_out(place: int, reason: str) -> None:
        skipped[int(usable[place])] = reason

    try:
        for places, scores in predictor.batches(found.take(usable), skip=left_out if skip else None):
            for place, row in zip(usable[places], softmax(predictor.among(scores, task))):
                best = np.argsort(-row, kind="stable")[:top]
                named = tuple((predictor.class_names[c], float(row[c])) for c in best)
                rows[int(place)] = Row(found.ids[place], named)
            progress.show(len(rows) + len(skipped) - len(found.bad))
    except DataError as failed:
        error = str(failed.__cause__ or failed)
    left = [(found.ids[i], skipped[i]) for i in sorted(skipped)]
    return Predictions([rows[i] for i in sorted(rows)], len(found), top, left, error)


class _Progress:
    """On standard error: a line that is written over in a terminal, else a line every ten seconds."""

    def __init__(self, n: int) -> None:
        self.n, self.began, self.said = n, time.monotonic(), time.monotonic()
        self.live = Console(stderr=True).is_terminal

    def show(self, done: int) -> None:
        now = time.monotonic()
        if not self.live and now - self.said < SAY_EVERY_SECONDS:
            return
        self.said = now
        text = f"{done} of {self.n} samples, {done / max(now - self.began, 1e-9):.0f} per second"
        end = "\n" if done == self.n or not self.live else ""
        print(f"\r{text}" if self.live else text, end=end, file=sys.stderr, flush=True)
