"""Tables and a one-page report, from run records alone."""

from .forecast_page import write_forecast_report
from .html import write_report
from .selection import Selection, select
from .tables import Cell, Row, rows, to_json, to_markdown, to_text

__all__ = [
    "Cell",
    "Row",
    "Selection",
    "rows",
    "select",
    "to_json",
    "to_markdown",
    "to_text",
    "write_forecast_report",
    "write_report",
]
