"""Progress of runs: a live line in a terminal, plain dated lines in a log file."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from tangentcl.reports.forecast_text import after_line, before_line
from tangentcl.reports.units import duration

LOG_EVERY_SECONDS = 10.0


class RunProgress:
    """Turns the events of `run_experiment` into progress with rate and expected time to the end of the run.

    In a terminal there is one live line per run; elsewhere a line is printed when a task starts and ends, and at most
    every ten seconds between, with no control characters. Use as a context manager and pass it as ``observe``.

    The expected time is that of the steps left in this task at the rate so far, and for each later task the mean time
    of the tasks learned so far: good for tasks of equal size, rough for others.

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
        self._current: tuple[str, int] | None = None
        self._last_print = 0.0

    def __enter__(self) -> RunProgress:
        if self.live:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),  # a label may hold brackets
                BarColumn(bar_width=24),
                TextColumn("{task.fields[detail]}", markup=False),
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
        """Show one event; the first of a run begins its line."""
        if self._current != (label, seed):
            self._begin(label, seed)
        getattr(self, f"_on_{event}", self._on_other)(fields)

    def _begin(self, label: str, seed: int) -> None:
        self._current = (label, seed)
        self._index += 1
        self._title = f"[{self._index}/{self.n_runs}] {label}, seed {seed}"
        self._n_tasks, self._done, self._task_share = 1, 0, 0.0
        self._refusal: str | None = None
        self._learned: list[float] = []  # seconds of each task learned
        self._task_began = time.perf_counter()
        self._share_before: float | None = 0.0  # of the task, done by an earlier process; None: not known yet
        if self._bar is not None:
            self._line = self._bar.add_task(self._title, total=1.0, detail="starting")

    def _on_run_started(self, fields: dict[str, Any]) -> None:
        self._n_tasks = int(fields["n_tasks"])

    def _on_resumed(self, fields: dict[str, Any]) -> None:
        self._n_tasks, self._done = int(fields["n_tasks"]), fields["task"]
        for note in fields["notes"]:
            self._say(note)
        step = f", step {fields['step']}" if fields["step"] else ""
        self._share_before = None if fields["step"] else 0.0
        self._show(f"goes on at task {min(self._done + 1, self._n_tasks)}/{self._n_tasks}{step}", True)

    def _on_extracting(self, fields: dict[str, Any]) -> None:
        self._show(f"features of {fields['done']}/{fields['total']} samples", False)

    def _on_skipped(self, fields: dict[str, Any]) -> None:
        self._done = self._n_tasks
        self._show("done before", True)

    def _on_task_started(self, fields: dict[str, Any]) -> None:
        self._done, self._task_share, self._share_before = (
            fields["task"],
            0.0,
            0.0,
        )  # tasks at which nothing is learned send no event
        self._task_began = time.perf_counter()
        self._show(f"task {fields['task'] + 1}/{self._n_tasks} ({fields['name']}): {fields['n_train']} samples", True)

    def _on_forecast(self, fields: dict[str, Any]) -> None:
        if fields["status"] == "refused" and fields["reason"] == self._refusal:
            return  # said before
        self._refusal = fields.get("reason")
        self._say(f"before task {fields['task'] + 1}/{self._n_tasks}: {before_line(fields)}")

    def _on_forecast_checked(self, fields: dict[str, Any]) -> None:
        self._say(f"after task {fields['task'] + 1}/{self._n_tasks}: {after_line(fields)}")

    def _on_step(self, fields: dict[str, Any]) -> None:
        self._task_share = fields["step"] / fields["n_steps"]
        if self._share_before is None:
            self._share_before, self._task_began = self._task_share, time.perf_counter()
        terms = " ".join(f"{name} {value:.3f}" for name, value in fields["terms"].items())
        self._show(
            f"task {fields['task'] + 1}/{self._n_tasks} epoch {fields['epoch'] + 1} "
            f"step {fields['step']}/{fields['n_steps']}: {terms}, {fields['samples_per_s']:.0f} samples/s{self._eta()}",
            False,
        )

    def _on_evaluated(self, fields: dict[str, Any]) -> None:
        known = [value for value in fields["accuracy"] if value is not None]
        self._done, self._task_share = fields["task"] + 1, 0.0
        self._learned.append(time.perf_counter() - self._task_began)
        mean = 100 * sum(known) / len(known)
        tasks = "1 task" if len(known) == 1 else f"{len(known)} tasks"
        self._show(
            f"task {fields['task'] + 1}/{self._n_tasks}: mean accuracy of {tasks} {mean:.1f} %"
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
        seconds = 0.0
        later = self._n_tasks - self._done
        here = self._task_share - (self._share_before or 0.0)
        if here > 0:
            spent = time.perf_counter() - self._task_began
            seconds, later = spent * (1 - self._task_share) / here, later - 1
            each = sum(self._learned) / len(self._learned) if self._learned else spent / here
        elif not self._learned:
            return ""
        else:
            each = sum(self._learned) / len(self._learned)
        return f", {duration(round(seconds + later * each))} left"

    def _say(self, text: str) -> None:
        """A line that stays, above the live one."""
        stamp = time.strftime("%H:%M:%S")
        self.console.print(f"{stamp} {self._title}: {text}", markup=False, highlight=False, soft_wrap=True)

    def _show(self, text: str, important: bool) -> None:
        if self._bar is not None and self._line is not None:
            share = (self._done + self._task_share) / self._n_tasks
            self._bar.update(self._line, completed=share, detail=text)
            return
        now = time.perf_counter()
        if important or now - self._last_print >= LOG_EVERY_SECONDS:
            self._last_print = now
            self._say(text)
