"""Weights & Biases: offline folders for ``wandb sync``, or its server when asked."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from tangentcl.errors import import_extra
from tangentcl.experiments.trackers.curves import Curves

QUIET = {"console": "off", "silent": True, "disable_git": True, "disable_code": True, "save_code": False}


class WandbTracker:
    """One wandb run for every run: curves, settings as its config, final metrics and status in its summary.

    Nothing leaves the machine unless ``mode = "online"``; ``WANDB_MODE`` does not change that. Printed lines, source
    code and git state are not collected. A run that is repeated is another wandb run.

    Args:
        folder: holds ``wandb/offline-run-*``.
        mode: "offline" writes files only; "online" sends them to the server that wandb is logged in to.
        project: of wandb; the experiment's name if not given.

    Raises:
        MissingExtra: wandb is not installed.
    """

    def __init__(
        self, folder: Path, *, mode: Literal["offline", "online"] = "offline", project: str | None = None
    ) -> None:
        self.wandb = import_extra("wandb", extra="wandb", purpose="the tracker 'wandb'")
        self.folder, self.mode, self.project = folder, mode, project
        self.curves = Curves()
        self._defined: set[str] = set()

    def start(self, name: str, settings: Mapping[str, Any]) -> None:
        """Begin the run beside any other of this process."""
        self.folder.mkdir(parents=True, exist_ok=True)  # wandb would go to a temporary folder instead
        hooks = sys.exit, sys.excepthook
        try:
            self.run = self.wandb.init(
                project=self.project or str(settings["name"]),
                group=str(settings["label"]),
                name=name.partition("/")[2],
                config=dict(settings),
                dir=str(self.folder),
                mode=self.mode,
                reinit="create_new",
                settings=self.wandb.Settings(**QUIET),
            )
        finally:
            sys.exit, sys.excepthook = hooks  # wandb's close runs that nobody closes; this one is closed by `finish`

    def event(self, event: str, fields: Mapping[str, Any]) -> None:
        """One row of the history, each curve over its own axis."""
        reading = self.curves.read(event, fields)
        for name in reading.values:
            if name not in self._defined:
                self._defined.add(name)
                self.run.define_metric(name, step_metric=reading.axis)
        if reading.values:
            self.run.log({reading.axis: reading.at, **reading.values})

    def finish(self, status: str, metrics: Mapping[str, float]) -> None:
        """Final metrics and status, and the end of the run."""
        self.run.summary.update({"status": status, **{f"metrics/{key}": value for key, value in metrics.items()}})
        self.run.finish(exit_code=0 if status == "done" else 1)
