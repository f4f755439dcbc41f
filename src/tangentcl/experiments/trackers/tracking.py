"""The trackers of one run: told of everything, and dropped when they fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tangentcl.experiments.trackers.tracker import Tracker
from tangentcl.records import Record
from tangentcl.records.writer import ENDS


class Tracking:
    """Passes a run's events on to its trackers. A tracker that fails costs the run nothing but its curves.

    Trackers start at the first event, when the run has a record, and none starts where there is no event: in the other
    processes of a run, and for a run that was done before. A run that goes on after a stop is told from its beginning.

    Args:
        trackers: by name.
        folder: of the run's record, which holds each event before it is told here.
        settings: of the run.
        say: called with the name of a tracker and what went wrong, once for each that fails.
    """

    def __init__(
        self,
        trackers: Mapping[str, Tracker],
        folder: Path,
        settings: Mapping[str, Any],
        say: Callable[[str, str], None],
    ) -> None:
        self.folder, self.settings, self.say = folder, settings, say
        self._to_start = list(trackers.items())
        self._active: dict[str, Tracker] = {}  # started, and not failed
        self._failed: dict[str, str] = {}  # with the reason

    @property
    def failures(self) -> tuple[str, ...]:
        """The trackers that failed, each with its reason."""
        return tuple(f"{name}: {reason}" for name, reason in self._failed.items())

    def event(self, event: str, fields: Mapping[str, Any]) -> None:
        """Tell every tracker of an event."""
        while self._to_start:
            self._start(*self._to_start.pop(0))
        for name, tracker in list(self._active.items()):
            self._tell(name, tracker.event, event, fields)

    def close(self) -> None:
        """Tell every tracker that has started how the run ended, as its record says."""
        for name, tracker in list(self._active.items()):
            self._tell(name, self._finish, tracker)

    def _start(self, name: str, tracker: Tracker) -> None:
        self._tell(name, tracker.start, "/".join(self.folder.parts[-3:]), self.settings)
        if name not in self._failed:
            self._active[name] = tracker
            self._tell(name, self._replay, tracker)

    def _replay(self, tracker: Tracker) -> None:
        """What the record held before the event that is now being told, its last one."""
        for line in Record.read(self.folder).events[:-1]:
            tracker.event(line["event"], {key: value for key, value in line.items() if key not in ("t", "event")})

    def _finish(self, tracker: Tracker) -> None:
        record = Record.read(self.folder)
        status = record.status.status if record.status.status in ENDS else "failed"  # the disk refused its last word
        metrics = {} if status != "done" or record.accuracy is None else record.accuracy.metrics
        tracker.finish(status, {key: float(value) for key, value in metrics.items() if isinstance(value, float)})

    def _tell(self, name: str, method: Callable[..., Any], *arguments: Any) -> None:
        try:
            method(*arguments)
        except Exception as error:  # a full disk, a server that is gone, a mistake in a class of the user's
            text = str(error).strip()
            self._active.pop(name, None)
            self._failed[name] = f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
            self.say(name, self._failed[name])
