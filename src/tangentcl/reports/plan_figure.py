"""The trade-off between learning and forgetting as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .axes import linear
from .plan_text import mark, varied
from .svg import Canvas, ticks

SLOTS = {"*": 1, "o": 0, ".": 5, "?": 3}
NAMES = {"*": "chosen", "o": "trade-off curve", ".": "other recipes", "?": "not to be believed"}

REAL = (2, 4)  # slots of what training gave: on the samples that decided, and on test samples


def plan_figure(plan: Mapping[str, Any], title: str) -> str:
    """New accuracy over forgetting of every recipe, both in per cent, as SVG; hovering names a recipe.

    Args:
        plan: of `TrainingChoice.to_dict`, with at least one recipe that could be forecast; with ``outcome``, what
            training the chosen one gave is marked too.
    """
    known = [(number, row) for number, row in enumerate(plan["rows"]) if row["trust"] != "refused"]
    limit, names = 100 * plan["max_forgetting"], varied(plan["rows"])
    real = (plan.get("outcome") or {"measured": []})["measured"]
    lost = [100 * row["forgetting"] for row in (*(row for _, row in known), *real)]
    across, up = ticks(min(0.0, *lost), max(limit, *lost)), ticks(0.0, 100.0)
    canvas = Canvas(720, 400)
    x, y = linear(across[0], across[-1], 72, 560), linear(0.0, 100.0, 344, 24)
    for tick in up:
        canvas.line(66, y(tick), 566, y(tick), 0.15)
        canvas.text(58, y(tick) + 4, f"{tick:g}", size=11, anchor="end")
    for tick in across:
        canvas.text(x(tick), 362, f"{tick:g}", size=11, anchor="middle")
    canvas.line(66, 344, 566, 344, 0.6)
    canvas.line(x(limit), 24, x(limit), 344, 0.6, "4 3")
    canvas.text(x(limit) + 5, 338, "tolerance", size=11)
    canvas.text(316, 386, "forgetting (points of old accuracy)", anchor="middle")
    canvas.text(16, 184, "accuracy on new samples (%)", anchor="middle", turned=True)
    front = [plan["rows"][number] for number in plan["front"]]
    canvas.curve([(x(100 * row["forgetting"]), y(100 * row["new_after"])) for row in front], SLOTS["o"])
    for number, row in sorted(known, key=lambda item: ".?o*".index(mark(plan, item[0]))):
        hint = ", ".join(f"{name} {row['settings'].get(name)}" for name in names) or "the recipe"
        place = x(100 * row["forgetting"]), y(100 * row["new_after"])
        kind = mark(plan, number)
        canvas.marker(*place, SLOTS[kind], size=6.0 if kind == "*" else 3.6, hint=hint)
    for i, row in enumerate(real):
        place = x(100 * row["forgetting"]), y(100 * row["new_after"])
        canvas.marker(*place, REAL[i], size=4.5, hint=f"trained, {row['split']} samples")
    kinds = [k for k in NAMES if any(mark(plan, number) == k for number, _ in known)]
    legend = [(SLOTS[k], NAMES[k]) for k in kinds] + [(REAL[i], f"trained, {m['split']}") for i, m in enumerate(real)]
    for i, (slot, name) in enumerate(legend):
        canvas.marker(584, 34 + 20 * i, slot)
        canvas.text(594, 38 + 20 * i, name)
    about = f"{len(known)} recipes; the tolerance is {limit:g} points"
    return canvas.finish("trade-off", title, about)
