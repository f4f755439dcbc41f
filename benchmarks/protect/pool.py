"""Worker processes that cells are given to, and the order in which they are."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.protect.cells import Cell

Follow = Callable[[Cell, bool], Sequence[Cell]]  # a cell that ended, and whether it is done -> what can begin now
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Failure:
    """A cell that has no record, and why."""

    cell: Cell
    reason: str


class Worker:
    """One process with one thread for arithmetic. Its own session: Ctrl-C reaches it through us, once."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.process: subprocess.Popen[str] | None = None

    def run(self, cell: Cell) -> dict[str, Any]:
        """Status and reason of a cell; a process that is gone counts as a failure, and the next cell gets a new one."""
        process = self._ready()
        assert process.stdin is not None
        assert process.stdout is not None
        task = {"document": cell.document, "out": str(cell.runs), "seconds": str(cell.seconds)}
        answer = ""
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(task) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        if answer:
            return dict(json.loads(answer))
        code = process.wait()
        self.process = None
        return {"status": "failed", "reason": f"its process ended with code {code}; see {self.log}"}

    def stop(self, *, now: bool = False) -> None:
        """End the process: when it has nothing to do, or, ``now``, as by Ctrl-C."""
        if (process := self.process) is None:
            return
        if now:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
        elif process.stdin is not None:
            process.stdin.close()
            process.wait()

    def _ready(self) -> subprocess.Popen[str]:
        if self.process is None:
            command = [sys.executable, "-m", "benchmarks.protect.worker"]
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("a") as log:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    cwd=ROOT,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    start_new_session=True,
                )
        return self.process


class Pool:
    """Runs cells on workers, in order, and what follows from them before what comes later.

    Args:
        workers: number of processes.
        out: folder of their logs.
        follow: what can begin once a cell has ended.
        expected: how many cells there will be in all, as far as is known; for the time that is left.
        say: prints a line.
    """

    def __init__(
        self, workers: int, out: Path, follow: Follow, expected: Callable[[], int], say: Callable[[str], None] = print
    ) -> None:
        self.workers = [Worker(out / f"worker-{i}.log") for i in range(workers)]
        self.follow, self.expected, self.say = follow, expected, say
        self.failures: list[Failure] = []
        self._left: list[Cell] = []
        self._running, self._ended, self._spent = 0, 0, 0.0
        self._stopped = False
        self._change = threading.Condition()

    def run(self, cells: Sequence[Cell]) -> list[Failure]:
        """All of them and those that follow; the failures.

        Raises:
            KeyboardInterrupt: after the running cells were closed; they go on when they are run again.
        """
        self._left = list(cells)
        threads = [threading.Thread(target=self._serve, args=(worker,)) for worker in self.workers]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads):
                time.sleep(0.1)
        except KeyboardInterrupt:
            self._stopped = True
            for worker in self.workers:
                worker.stop(now=True)
            raise
        finally:
            for thread in threads:
                thread.join()
            for worker in self.workers:
                worker.stop()
        return self.failures

    def _serve(self, worker: Worker) -> None:
        while (cell := self._next()) is not None:
            began = time.perf_counter()
            try:
                answer = worker.run(cell)
            except Exception as error:  # a thread that dies would leave the others waiting
                answer = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
            self._end(cell, answer, time.perf_counter() - began)

    def _next(self) -> Cell | None:
        with self._change:
            while not self._left and self._running and not self._stopped:
                self._change.wait(0.5)
            if self._stopped or not self._left:
                return None
            self._running += 1
            return self._left.pop(0)

    def _end(self, cell: Cell, answer: dict[str, Any], seconds: float) -> None:
        with self._change:
            self._running -= 1
            if not self._stopped:
                done = answer["status"] == "done"
                self._ended, self._spent = self._ended + 1, self._spent + seconds
                if not done:
                    self.failures.append(Failure(cell, str(answer["reason"])))
                following = self.follow(cell, done)
                expected = self.expected()
                left = (expected - self._ended) * self._spent / self._ended / len(self.workers)
                ending = f"{seconds:.0f} s" if done else f"FAILED: {answer['reason']}"
                about = f"about {left / 60:.0f} min left"
                self.say(f"[{self._ended}/{expected}] {cell.title}: {ending}; {about}")
                self._left[:0] = following
            self._change.notify_all()
