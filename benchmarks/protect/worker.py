"""A process that runs cells: a line of JSON in, a line out, until the input ends.

In: ``{"document": experiment, "out": folder of records, "seconds": file of processor time}``. Out:
``{"status": "done" or "failed", "reason": text or null}``. One process runs many cells, so that libraries are loaded
once; states are kept at the ends of tasks alone, so that the processor time of a task is that of doing it in one go.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def run_cell(document: dict[str, Any], out: Path, seconds: Path) -> dict[str, Any]:
    """One experiment with one method and seed.

    ``seconds`` gets a line ``{"task", "cpu_seconds"}`` for each task learned: training and consolidation, without
    evaluation and without features that are kept. Of a task that was learned twice the last line counts.
    """
    from tangentcl.experiments.config import experiment_from
    from tangentcl.experiments.run import run_experiment
    from tangentcl.nn import FeatureStore

    began = time.process_time()

    def observe(label: str, seed: int, event: str, fields: dict[str, Any]) -> None:
        nonlocal began
        if event == "task_started":
            began = time.process_time()
        if event == "task_trained":
            line = {"task": fields["task"], "cpu_seconds": round(time.process_time() - began, 4)}
            seconds.parent.mkdir(parents=True, exist_ok=True)
            with seconds.open("a") as file:
                file.write(json.dumps(line) + "\n")

    experiment = experiment_from(document)
    store = FeatureStore(out.parent / "features")
    (outcome,) = run_experiment(experiment, out, observe=observe, checkpoint_every=0, features=store)
    return {"status": "done" if outcome.status == "skipped" else outcome.status, "reason": outcome.reason}


def main() -> None:
    """Serve until the input ends; Ctrl-C closes the running record as interrupted and ends the process."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    try:
        for line in sys.stdin:
            task = json.loads(line)
            try:
                answer = run_cell(task["document"], Path(task["out"]), Path(task["seconds"]))
            except Exception as error:
                answer = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
