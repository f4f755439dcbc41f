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
        self.failures: list[str] = []
        self._to_start = list(trackers.items())
        self._active: dict[str, Tracker] = {}  # started, and not failed

    @property
    def active(self) -> bool:
        """Whether a tracker has started and not failed."""
        return bool(self._active)

    def event(self, event: str, fields: Mapping[str, Any]) -> None:
        """Tell every tracker of an event."""
        while self._to_start:
            name, tracker = self._to_start.pop(0)
            if self._try(name, tracker.start, self.name, self.settings):
                self._active[name] = tracker
        self._all("event", event, fields)

    def finish(self, status: str, metrics: Mapping[str, float]) -> None:
        """Tell every tracker that has started how the run ended."""
        self._all("finish", status, metrics)

    def _all(self, method: str, *arguments: Any) -> None:
        for name, tracker in list(self._active.items()):
            if not self._try(name, getattr(tracker, method), *arguments):
                del self._active[name]

    def _try(self, name: str, tell: Callable[..., None], *arguments: Any) -> bool:
        try:
            tell(*arguments)
        except Exception as error:  # a full disk, a server that is gone, a mistake in a class of the user's
            text = str(error).strip()
            reason = f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
            self.failures.append(f"{name}: {reason}")
            self.say(name, reason)
            return False
        return True
