"""What a tracker is: something that is told of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Tracker(Protocol):
    """Looks on while a run goes on, in the main process; one object for one run.

    A class of one's own is named ``"package.module:Class"`` in an experiment file. It is constructed with ``folder``,
    where it may write, and with the other keys of its table as keywords. Every object is also constructed once before
    the first run, to check them, so the constructor opens nothing; `start` does.

    Whatever a method raises is reported once, and the tracker hears no more of that run. The run goes on: its numbers
    do not depend on who looks on, and a tracker draws nothing from the global random generators.
    """

    def start(self, name: str, settings: Mapping[str, Any]) -> None:
        """Before the first event.

        Args:
            name: ``"experiment/label/seed-0"``, the run's place below the output folder.
            settings: all settings as the record keeps them, nested tables.
        """

    def event(self, event: str, fields: Mapping[str, Any]) -> None:
        """An event of the run, the same as in ``events.jsonl``, in order and from the beginning."""

    def finish(self, status: str, metrics: Mapping[str, float]) -> None:
        """The run has ended, and its record is closed; told only to a tracker whose `start` went through.

        Args:
            status: "done", "failed" or "interrupted".
            metrics: the final metrics of a run that is done, each a single number; otherwise empty.
        """
