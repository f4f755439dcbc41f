"""The fastest way to exact float32 products on a CPU: torch's default, or oneDNN where it proves exact and faster.

``torch.backends.mkldnn.matmul.fp32_precision = "bf16"`` sends float32 products to oneDNN. Some processors then round to
bf16, others compute in float32 with wider instructions than the default; nothing but a measurement tells which.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear

from tangentcl.errors import ConfigError, DataError, nearest
from tangentcl.files import write_whole

ROUTES = ("default", "onednn")
EXACT = 1e-5  # relative error that a route may have
FASTER = 1.1  # times that a route has to be faster for a change
FILE = "routes.json"
SHAPE = (2048, 384, 1536)  # tokens, width and width of the MLP of a small transformer


@dataclass(frozen=True)
class Cost:
    """What a route costs: CPU seconds, and the relative error against float64."""

    seconds: float
    error: float


Measure = Callable[[str], Cost]


@contextmanager
def matmul_route(name: str) -> Iterator[None]:
    """Float32 products on the CPU take this route in the block; afterwards the setting is what it was.

    Raises:
        ConfigError: no such route.

    >>> with matmul_route("default"):
    ...     torch.eye(2) @ torch.ones(2)
    tensor([1., 1.])
    """
    if name not in ROUTES:
        raise ConfigError(f"matmul route '{name}' is unknown.{nearest(name, ROUTES)}")
    if name == "default" or not has_routes():
        yield
        return
    onednn: Any = torch.backends.mkldnn
    setting = onednn.matmul
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


def has_routes() -> bool:
    """Whether this torch has a choice: oneDNN, and the setting (2.9 and later)."""
    found = getattr(torch.backends.mkldnn, "matmul", None)
    return torch.backends.mkldnn.is_available() and hasattr(found, "fp32_precision")


def product_cost(route: str, *, repeats: int = 5) -> Cost:
    """The cost of one product of transformer shape: the shortest of some, its error in the Frobenius norm."""
    rng = torch.Generator().manual_seed(0)
    n, d, m = SHAPE
    x, weight = torch.randn(n, d, generator=rng), torch.randn(m, d, generator=rng)
    rows = 256  # enough for the error
    exact = linear(x[:rows].double(), weight.double())  # [rows, m]
    with torch.no_grad(), matmul_route(route):
        found = linear(x, weight)  # [n, m]; also warms up
        seconds = min(cpu_seconds(lambda: linear(x, weight)) for _ in range(repeats))
    return Cost(seconds, float((found[:rows] - exact).norm() / exact.norm()))


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process for a call, which other work on the machine hardly changes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def fastest_route(
    folder: Path, *, key: str = "", measure: Measure = product_cost, work: Callable[[], object] | None = None
) -> str:
    """The fastest exact route of this machine: measured once, then remembered in the folder.

    oneDNN is taken where its relative error is at most 1e-5 and it is at least 1.1 times as fast as the default on a
    product and, since short texts gain nothing from fast large products, on ``work``, too.

    Args:
        folder: holds ``routes.json``; one that is damaged is written anew.
        key: which of several kinds of work; the processor, torch and the number of threads are part of the key anyway.
        measure: route -> cost of a product.
        work: what will be computed, or a part of it.

    Raises:
        DataError: the folder cannot be written.
    """
    if not has_routes():
        return "default"
    key = " | ".join([processor(), f"torch {torch.__version__}", f"{torch.get_num_threads()} threads", key])
    known = _remembered(folder / FILE)
    if key in known:
        return known[key]
    route = _chosen(measure, work)
    known = {**_remembered(folder / FILE), key: route}
    try:
        write_whole(folder / FILE, json.dumps(known, indent=1, sort_keys=True).encode())
    except OSError as error:
        raise DataError(
            f"the fastest route cannot be kept in {folder / FILE} ({error.strerror or error}). Make room "
            "(tangentcl cache clear), name another folder in TANGENTCL_CACHE, or run with --no-cache."
        ) from error
    return route


def _chosen(measure: Measure, work: Callable[[], object] | None) -> str:
    plain, other = measure("default"), measure("onednn")
    if not other.error <= EXACT or other.seconds * FASTER > plain.seconds:
        return "default"
    if work is None:
        return "onednn"
    seconds: dict[str, list[float]] = {route: [] for route in ROUTES}
    for _ in range(3):  # in turn; the first of each warms up
        for route in ROUTES:
            with matmul_route(route):
                seconds[route].append(cpu_seconds(work))
    return "onednn" if min(seconds["onednn"][1:]) * FASTER <= min(seconds["default"][1:]) else "default"


def _remembered(path: Path) -> dict[str, str]:
    """What the file says; nothing where it is absent or damaged."""
    with suppress(OSError, ValueError):
        known = json.loads(path.read_text())
        if isinstance(known, dict) and all(route in ROUTES for route in known.values()):
            return known
    return {}


def processor() -> str:
    """Its name."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
