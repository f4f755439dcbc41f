"""A wish to stop that waits for the end of a training step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopping:
    """Ctrl-C and SIGTERM: between the steps of a task they wait until the step is done, elsewhere they act at once.

    A second one never waits. In other threads than the main one signals stay as they are.

    Attributes:
        asked: whether a stop is waiting.
    """

    def __init__(self) -> None:
        self.asked = False
        self._waits = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the two signals, and give them back."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[signal.Signals, Any] = {number: signal.signal(number, self._heard) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within: the first signal only asks."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self._waits and not self.asked:
            self.asked = True
            return
        raise KeyboardInterrupt(f"stopped by {signal.Signals(number).name}")
