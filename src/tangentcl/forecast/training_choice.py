"""Which of many recipes to take: what each promises, the trade-off between them, and the choice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import NormalDist
from typing import Any

from tangentcl.errors import ConfigError


@dataclass(frozen=True)
class Prospect:
    """What a forecast says of one recipe.

    Attributes:
        settings: of the recipe, by name.
        old_now, old_after: accuracy on old samples, shares; NaN where the recipe was refused.
        new_after: accuracy on held-out new samples, over all outputs.
        trust: "exact", "high", "medium", "low", or "refused".
        sentence: how far to believe it, or why it was refused.
        training_samples: samples that training would go through, every epoch counted; 0 where unknown.
        seconds: that the forecast took, without what it shares with others.
        old_cautious: accuracy on old samples if their outputs moved further by the gap that `Trust` measured, at most
            ``old_after``; None = ``old_after``, as for an exact forecast.
        refined: share of the training that was really done before the rest was forecast, on a copy; 0 for none.
        old_lost, old_gained: old samples that are right now and will be wrong, and the other way round.
        old_margin: share of old samples by which forgetting may be larger on others of their kind, with the confidence
            that was asked for; 0 where none was. See `sampling_margin`.
    """

    settings: Mapping[str, Any]
    old_now: float
    old_after: float
    new_after: float
    trust: str
    sentence: str = ""
    training_samples: int = 0
    seconds: float = 0.0
    old_cautious: float | None = None
    refined: float = 0.0
    old_lost: int = 0
    old_gained: int = 0
    old_margin: float = 0.0

    @property
    def forgetting(self) -> float:
        """Share of old samples lost; negative where some are gained."""
        return self.old_now - self.old_after

    @property
    def cautious_forgetting(self) -> float:
        """Share of old samples lost by the cautious accuracy, and the margin: what a tolerance is held against."""
        lost = self.forgetting if self.old_cautious is None else self.old_now - self.old_cautious
        return lost + self.old_margin

    @property
    def believable(self) -> bool:
        """Whether the forecast may be acted on: neither refused nor of low trust."""
        return self.trust in ("exact", "high", "medium")

    def to_dict(self) -> dict[str, Any]:
        """As plain values; the accuracies of a refused recipe are None."""
        found = {**asdict(self), "settings": dict(self.settings), "forgetting": self.forgetting}
        return {key: None if value != value else value for key, value in found.items()}


@dataclass(frozen=True)
class TrainingChoice:
    """Every recipe that was considered, and the one to take.

    A recipe is *admissible* when its forecast is believable, it forgets at most ``max_forgetting`` even if the drift
    is larger by the measured gap of a local forecast, and it learns: at least ``min_learned`` times the best accuracy
    on new samples among all believable recipes. (Without the last, not training at all would always do.)

    Attributes:
        rows: in the order of the candidates.
        max_forgetting: share of old samples that may be lost.
        min_learned: share of the best new accuracy that has to be reached.

    >>> def row(lr, old, new, trust="exact"): return Prospect({"lr": lr}, 0.95, old, new, trust)
    >>> choice = TrainingChoice((row(1e-4, 0.95, 0.10), row(1e-3, 0.94, 0.85), row(1e-2, 0.90, 0.92)), 0.02)
    >>> choice.chosen.settings, round(choice.floor, 3)
    ({'lr': 0.001}, 0.736)
    >>> [r.settings["lr"] for r in choice.front]
    [0.0001, 0.001, 0.01]
    """

    rows: tuple[Prospect, ...]
    max_forgetting: float
    min_learned: float = 0.8
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if not -1 <= self.max_forgetting <= 1:
            raise ConfigError(f"max_forgetting is a share of old samples from 0 to 1, got {self.max_forgetting!r}")
        if not 0 <= self.min_learned <= 1:
            raise ConfigError(f"min_learned is a share from 0 to 1, got {self.min_learned!r}")

    @property
    def believable(self) -> tuple[Prospect, ...]:
        """Rows whose forecast may be acted on."""
        return tuple(row for row in self.rows if row.believable)

    @property
    def floor(self) -> float:
        """Accuracy on new samples from which on a recipe counts as learning them."""
        return self.min_learned * max((row.new_after for row in self.believable), default=0.0)

    def admits(self, row: Prospect) -> bool:
        """Whether a row is believable, forgets little enough and learns."""
        return row.believable and self._shortfall(row) <= 1e-9

    @property
    def chosen(self) -> Prospect | None:
        """Of the admissible rows the most accurate on new samples, then the least forgetful, then the shortest; None
        where there is none."""
        admissible = [row for row in self.rows if self.admits(row)]
        return min(admissible, key=lambda r: (-r.new_after, r.forgetting, r.training_samples), default=None)

    @property
    def closest(self) -> Prospect | None:
        """The believable row that misses forgetting and learning together by least; None where none is believable."""
        return min(self.believable, key=lambda r: (self._shortfall(r), -r.new_after), default=None)

    @property
    def front(self) -> tuple[Prospect, ...]:
        """The trade-off curve: believable rows that no other beats on both counts, from the least forgetting on."""
        found: list[Prospect] = []
        for row in sorted(self.believable, key=lambda r: (r.forgetting, -r.new_after, r.training_samples)):
            if not found or row.new_after > found[-1].new_after:
                found.append(row)
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """As plain values: tolerance, rows, and the numbers of those on the front and of the chosen and closest row."""

        def number(row: Prospect | None) -> int | None:
            return None if row is None else next(i for i, other in enumerate(self.rows) if other is row)

        return {
            "max_forgetting": self.max_forgetting,
            "min_learned": self.min_learned,
            "new_accuracy_floor": self.floor,
            "notes": list(self.notes),
            "rows": [{**row.to_dict(), "admissible": self.admits(row)} for row in self.rows],
            "front": [number(row) for row in self.front],
            "chosen": number(self.chosen),
            "closest": number(self.closest),
        }

    def _shortfall(self, row: Prospect) -> float:
        return max(0.0, row.cautious_forgetting - self.max_forgetting) + max(0.0, self.floor - row.new_after)


def sampling_margin(lost: int, gained: int, n: int, confidence: float) -> float:
    r"""What n old samples leave open about forgetting, a difference of paired shares.

    With b samples lost and c gained of n, forgetting is :math:`(b - c)/n`. Half a sample is added to each of the four
    cells, :math:`b' = b + 1/2` and :math:`c' = c + 1/2` (Agresti and Min, "Simple improved confidence intervals for
    comparing matched proportions", Statistics in Medicine 24, 2005), and the margin goes from :math:`(b - c)/n` to the
    upper limit

    .. math:: \frac{b - c}{n + 2} + z \sqrt{\frac{b' + c' - (b' - c')^2 / (n + 2)}{(n + 2)^2}},

    with z the normal quantile of the confidence, one-sided. It is of the recipe alone: that one of many was chosen on
    these samples is not in it.

    >>> round(sampling_margin(6, 0, 300, 0.9), 4), sampling_margin(6, 0, 300, 0.0)
    (0.011, 0.0)
    """
    if not confidence or not n:
        return 0.0
    b, c, whole = lost + 0.5, gained + 0.5, n + 2
    error = math.sqrt(b + c - (b - c) ** 2 / whole) / whole
    return max(0.0, (b - c) / whole + NormalDist().inv_cdf(confidence) * error - (lost - gained) / n)


def joined_choice(choices: Sequence[TrainingChoice]) -> TrainingChoice:
    """One choice among the rows of several, made with the same demands.

    Raises:
        ConfigError: no choice, or other demands.
    """
    if not choices or len({(c.max_forgetting, c.min_learned) for c in choices}) != 1:
        raise ConfigError("expected choices made with one max_forgetting and one min_learned")
    rows = tuple(row for choice in choices for row in choice.rows)
    notes = tuple(dict.fromkeys(note for choice in choices for note in choice.notes))
    return TrainingChoice(rows, choices[0].max_forgetting, choices[0].min_learned, notes)
