"""Trackers look on while a run goes on: one tracker, one file. `TRACKERS` maps the names used in experiment files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tangentcl.errors import ConfigError, imported_class
from tangentcl.experiments.call import call
from tangentcl.experiments.trackers.curves import Curves, Reading
from tangentcl.experiments.trackers.mlflow import MLflowTracker
from tangentcl.experiments.trackers.tensorboard import TensorBoardTracker
from tangentcl.experiments.trackers.tracker import Tracker
from tangentcl.experiments.trackers.tracking import Tracking
from tangentcl.experiments.trackers.wandb import WandbTracker

TRACKERS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "mlflow": MLflowTracker,
    "wandb": WandbTracker,
}

__all__ = ["TRACKERS", "Curves", "Reading", "Tracker", "Tracking", "build_trackers", "tracker_class"]


def tracker_class(name: str) -> type[Tracker]:
    """The class behind a name of `TRACKERS` or a ``"package.module:Class"``.

    Raises:
        ConfigError: unknown name, module that does not import, or not a class with the methods of `Tracker`.

    >>> tracker_class("tensorboard").__name__
    'TensorBoardTracker'
    """
    if name in TRACKERS:
        return TRACKERS[name]
    found = imported_class(name, "tracker", TRACKERS)
    lacking = [method for method in ("start", "event", "finish") if not callable(getattr(found, method, None))]
    if not isinstance(found, type) or lacking:
        what = f"it lacks {', '.join(lacking)}" if isinstance(found, type) else f"it is a {type(found).__name__}"
        raise ConfigError(f"tracker {name!r} must be a class with the methods start, event and finish; {what}")
    return found


def build_trackers(tables: Sequence[Mapping[str, Any]], out: Path) -> dict[str, Tracker]:
    """The trackers of one run by name; nothing is opened yet.

    Args:
        tables: every ``[[tracker]]``; its keys are the keywords of the class, ``folder`` is its first argument.
        out: folder of all records; what has no ``folder`` writes into one of its own name in here.

    Raises:
        ConfigError: unknown name or key, wrong type, a tracker named twice. MissingExtra: its package is missing.
    """
    trackers: dict[str, Tracker] = {}
    for table in tables:
        keywords = dict(table)
        name = keywords.pop("name")
        folder = keywords.pop("folder", None)
        if folder is not None and (not isinstance(folder, (str, Path)) or not str(folder)):
            raise ConfigError(f"[tracker {name}] folder must be text that is not empty, got {folder!r}")
        if name in trackers:
            raise ConfigError(f"there are two trackers {name!r}; one run needs one of them")
        where = out / name.rpartition(":")[2].lower() if folder is None else Path(folder)
        trackers[name] = call(
            tracker_class(name), keywords, table=f"tracker {name}", given=(where,), aliases=("name", "folder")
        )
    return trackers
