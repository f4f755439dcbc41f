"""Progress of runs: a live line in a terminal, plain dated lines in a log file."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from tangentcl.reports.html import duration

LOG_EVERY_SECONDS = 10.0


class RunProgress:
    """Turns the events of `run_experiment` into progress with rate and expected time to the end of the run.

    In a terminal there is one live line per run; elsewhere a line is printed when a task starts and ends, and at most
    every ten seconds between, with no control characters. Use as a context manager and pass it as ``observe``.

    The expected time is that of the tasks left at the time per training sample so far: exact for a steady rate and
    equal tasks, and rough before the first evaluation.

    Args:
        console: where to print; results go to standard output, so progress belongs on standard error.
        n_runs: number of methods times seeds.
    """

    def __init__(self, console: Console, n_runs: int) -> None:
        self.console, self.n_runs = console, n_runs
        self.live = console.is_terminal
        self._bar: Progress | None = None
        self._line: TaskID | None = None
        self._index = 0
        self._last_print = 0.0

    def __enter__(self) -> RunProgress:
        if self.live:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[detail]}"),
                console=self.console,
                transient=False,
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, label: str, seed: int, event: str, fields: dict[str, Any]) -> None:
        """Show one event."""
        if event == "run_started":
            self._index += 1
            self._began = time.perf_counter()
            self._title = f"[{self._index}/{self.n_runs}] {label}, seed {seed}"
            self._n_tasks, self._done, self._task_share = int(fields["n_tasks"]), 0, 0.0
            if self._bar is not None:
                self._line = self._bar.add_task(self._title, total=1.0, detail="starting")
            return
        getattr(self, f"_on_{event}", self._on_other)(fields)

    def _on_task_started(self, fields: dict[str, Any]) -> None:
        self._name, self._n_train, self._task_share = fields["name"], fields["n_train"], 0.0
        self._show(f"task {fields['task'] + 1}/{self._n_tasks} ({fields['name']}): {fields['n_train']} samples", True)

    def _on_step(self, fields: dict[str, Any]) -> None:
        self._task_share = fields["step"] / fields["n_steps"]
        terms = " ".join(f"{name} {value:.3f}" for name, value in fields["terms"].items())
        self._show(
            f"task {fields['task'] + 1}/{self._n_tasks} epoch {fields['epoch'] + 1} "
            f"step {fields['step']}/{fields['n_steps']}: {terms}, {fields['samples_per_s']:.0f} samples/s{self._eta()}",
            False,
        )

    def _on_evaluated(self, fields: dict[str, Any]) -> None:
        known = [value for value in fields["accuracy"] if value is not None]
        self._done, self._task_share = fields["task"] + 1, 0.0
        mean = 100 * sum(known) / len(known)
        self._show(
            f"task {fields['task'] + 1}/{self._n_tasks}: mean accuracy of {len(known)} tasks {mean:.1f} %"
            + (self._eta() if self._done < self._n_tasks else ""),
            True,
        )

    def _on_run_finished(self, fields: dict[str, Any]) -> None:
        self._done = self._n_tasks
        self._show(f"finished in {duration(round(fields['seconds']))}", True)

    def _on_failed(self, fields: dict[str, Any]) -> None:
        self._show(f"failed: {fields['error']}", True)

    def _on_other(self, fields: dict[str, Any]) -> None:
        """Events without a line of their own."""

    def _eta(self) -> str:
        share = (self._done + self._task_share) / self._n_tasks
        if share <= 0:
            return ""
        spent = time.perf_counter() - self._began
        return f", {duration(round(spent * (1 - share) / share))} left"

    def _show(self, text: str, important: bool) -> None:
        if self._bar is not None and self._line is not None:
            share = (self._done + self._task_share) / self._n_tasks
            self._bar.update(self._line, completed=share, detail=text)
            return
        now = time.perf_counter()
        if important or now - self._last_print >= LOG_EVERY_SECONDS:
            self._last_print = now
            stamp = time.strftime("%H:%M:%S")
            self.console.print(f"{stamp} {self._title}: {text}", markup=False, highlight=False, soft_wrap=True)
