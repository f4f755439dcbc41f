"""One self-contained HTML page from the forecasts of one run or of one command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import RecordError
from ..records.forecasts import TaskForecast
from .forecast_section import Forecasts, section
from .forecasts import Run
from .pages import render, write_page


def write_forecast_report(title: str, forecasts: Sequence[TaskForecast], out: str | Path) -> Path:
    """Write a page about these forecasts, with what came true where it is known.

    Args:
        title: of the page, e.g. the name of the run.
        forecasts: of one run, as read from its record; refused ones are listed with the reason.
        out: the file to write, replaced in one step; for a folder, ``forecast.html`` inside.

    Returns:
        Path of the written file.

    Raises:
        RecordError: no forecasts, or the file cannot be written.

    >>> import tempfile
    >>> from tangentcl.records.forecasts import TaskForecast
    >>> forecast = TaskForecast(1, "2, 3", {"status": "refused", "reason": "nothing trains"}, {})
    >>> write_forecast_report("digits, seed 0", [forecast], tempfile.mkdtemp()).name
    'forecast.html'
    """
    if not forecasts:
        raise RecordError("no forecast to report on. Make one: tangentcl forecast RUN --task t")
    ordered = sorted(forecasts, key=lambda f: f.task)
    part = section("f", [Forecasts(title, 0, [Run(0, ordered)])])
    return write_page(render("forecast.html.j2", {"title": title, "part": part}), out, "forecast.html")
