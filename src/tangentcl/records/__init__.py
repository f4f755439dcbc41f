"""Run records: what a run leaves on disk, written by the runner and read by reports."""

from .accuracy import Accuracy
from .checksums import write_checksums
from .forecasts import TaskForecast, read_forecasts
from .published import Published, published_from
from .record import Record, Status, find_records
from .theory import TaskTheory, read_theory
from .writer import RecordWriter, is_abandoned

__all__ = [
    "Accuracy",
    "Published",
    "Record",
    "RecordWriter",
    "Status",
    "TaskForecast",
    "TaskTheory",
    "find_records",
    "is_abandoned",
    "published_from",
    "read_forecasts",
    "read_theory",
    "write_checksums",
]
