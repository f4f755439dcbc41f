"""TensorBoard: event files in a folder, read by ``tensorboard --logdir``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangentcl.errors import import_extra
from tangentcl.experiments.trackers.curves import Curves
from tangentcl.experiments.trackers.flat import flat

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FLUSH_SECONDS = 10


class TensorBoardTracker:
    """Writes ``folder/experiment/label/seed-N``: curves, settings as text, and a row for the HPARAMS table when done.

    TensorBoard shows all event files of a folder as one run, so those of an earlier run of the same name are removed
    when a run starts. Values are stored in single precision.

    Args:
        folder: what ``tensorboard --logdir`` is given.

    Raises:
        MissingExtra: tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        import_extra("tensorboard", extra="tensorboard", purpose="the tracker 'tensorboard'")
        self.folder = folder
        self.curves = Curves()

    def start(self, name: str, settings: Mapping[str, Any]) -> None:
        """Open the event file of the run."""
        from torch.utils.tensorboard import SummaryWriter

        place = self.folder / name
        for old in place.glob("events.out.tfevents.*"):
            old.unlink()
        self.settings = flat(settings)
        self.writer: SummaryWriter = SummaryWriter(str(place), flush_secs=FLUSH_SECONDS)
        rows = [f"| {key} | {value} |" for key, value in self.settings.items()]
        self.writer.add_text("settings", "\n".join(["| setting | value |", "| --- | --- |", *rows]))

    def event(self, event: str, fields: Mapping[str, Any]) -> None:
        """One point on each curve."""
        reading = self.curves.read(event, fields)
        for name, value in reading.values.items():
            self.writer.add_scalar(name, value, reading.at)
        if event != "step":
            self.writer.flush()  # what a full disk refuses shows here, not in the thread that writes

    def finish(self, status: str, metrics: Mapping[str, float]) -> None:
        """Settings beside final metrics, and the end of the file."""
        self.writer.add_text("status", status)
        self.writer.flush()
        if metrics:
            named = {f"metrics/{key}": value for key, value in metrics.items()}
            # a second file in the same folder, after the first: a reader never goes back to an older one
            self.writer.add_hparams(self.settings, named, run_name=".", global_step=self.curves.task)
        self.writer.close()
