"""The trackers of one run: told of everything, and dropped when they fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tangentcl.experiments.trackers.tracker import Tracker


class Tracking:
    """Passes a run's events on to its trackers. A tracker that fails costs the run nothing but its curves.

    Trackers start at the first event, when the run has a record, and none starts where there is no event: in the other
    processes of a run, and for a run that was done before.

    Args:
        trackers: by name.
        name: of the run.
        settings: of the run.
        say: called with the name of a tracker and what went wrong, once for each that fails.
    """

    def __init__(
        self,
        trackers: Mapping[str, Tracker],
        name: str,
        settings: Mapping[str, Any],
        say: Callable[[str, str], None],
    ) -> None:
        self.name, self.settings, self.say = name, settings, say
        self.started = False
        self.failures: list[str] = []
        self._active = dict(trackers)

    def event(self, event: str, fields: Mapping[str, Any]) -> None:
        """Tell every tracker of an event."""
        if not self.started:
            self.started = True
            self._each(lambda tracker: tracker.start(self.name, self.settings))
        self._each(lambda tracker: tracker.event(event, fields))

    def finish(self, status: str, metrics: Mapping[str, float]) -> None:
        """Tell every tracker that has started how the run ended."""
        if self.started:
            self._each(lambda tracker: tracker.finish(status, metrics))

    def _each(self, tell: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._active.items()):
            try:
                tell(tracker)
            except Exception as error:  # a full disk, a server that is gone, a mistake in a class of the user's
                del self._active[name]
                text = str(error).strip()
                reason = f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
                self.failures.append(f"{name}: {reason}")
                self.say(name, reason)
