"""What is compared: one row each, with what is tried for it and the figures that were measured beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from benchmarks.spectral.anchored import Anchored
from benchmarks.spectral.sketched import ClosedForm, Sketched
from tangentcl.linalg import FrequentDirections, LowRankDiagonal, SecondMoment
from tangentcl.methods import EWC, GPM, Finetune, Joint, LwF, Method, Replay, Spectral
from tangentcl.nn import Backbone

NEW_BIAS = -2.0
GPM_MEASURED = "89.3 8.3 95.9", "87.3 2.4 89.1", "88.9 4.8 93.1"
Make = Callable[[Backbone, int, float, int], Method]  # backbone, k, value, seed


@dataclass(frozen=True)
class Row:
    """A method.

    Attributes:
        grid: which values are tried, a key of the setting's grids; ``"rate"`` is a factor on the learning rate.
        remembers: whether k changes it.
        measured: by setting and k (None where k does not matter), figures measured beforehand with another program:
            average accuracy, forgetting and new-task accuracy after the stream, None where unknown.
    """

    label: str
    grid: str
    make: Make
    remembers: bool = False
    measured: Mapping[tuple[str, int | None], tuple[float | None, ...]] = field(default_factory=dict)

    def keys(self, setting: str, k: int, fewer: tuple[int, ...]) -> list[int | None]:
        """Amounts of memory it is measured at: k, and those of ``fewer`` that figures are known of."""
        return [*(j for j in fewer if (setting, j) in self.measured), k] if self.remembers else [None]


def _ewc(backbone: Backbone, k: int, value: float, seed: int) -> Method:
    method = EWC(backbone, strength=value, tune="head", seed=seed)
    method.learner.new_bias = NEW_BIAS
    return method


def _lwf(backbone: Backbone, k: int, value: float, seed: int) -> Method:
    method = LwF(backbone, strength=value, tune="head", logits="all")
    method.learner.new_bias = NEW_BIAS
    return method


def _gpm(backbone: Backbone, k: int, value: float, seed: int) -> Method:
    return GPM(backbone, threshold=value, growth=0.0, tune="head", new_bias=NEW_BIAS)


def _gpm_projected(backbone: Backbone, k: int, value: float, seed: int) -> Method:
    return GPM(backbone, threshold=value, growth=0.0, tune="head", new_rows="projected")


def _spectral(backbone: Backbone, k: int, value: float, seed: int) -> Method:
    return Spectral(backbone, tune="head", k=k, strength=value, new_bias=NEW_BIAS)


def _tail(backbone: Backbone, k: int, value: float, seed: int) -> Method:
    sketch = FrequentDirections(backbone.width + 1, k)
    return Sketched(backbone, sketch, strength=value, new_bias=NEW_BIAS)


def _full(backbone: Backbone, k: int, value: float, seed: int) -> Method:
    return _spectral(backbone, backbone.width + 1, value, seed)


def _average(**figures: float) -> dict[tuple[str, int | None], tuple[float | None, ...]]:
    """Average accuracies alone, by keywords such as ``clinc150_10=37.4``."""
    named = {name.rpartition("_"): value for name, value in figures.items()}
    return {(setting, int(k)): (value, None, None) for (setting, _, k), value in named.items()}


def _all(
    digits: str, rotated: str, clinc150: str, k: bool = False
) -> dict[tuple[str, int | None], tuple[float | None, ...]]:
    """Figures of all settings, "average forgetting new"."""
    known = {"digits": (digits, 20), "rotated": (rotated, 50), "clinc150": (clinc150, 150)}
    return {
        (name, own if k else None): (*(float(v) for v in text.split()), None, None)[:3]
        for name, (text, own) in known.items()
    }


ROWS = (
    Row(
        "naive cross-entropy", "rate", lambda b, k, v, s: Finetune(b, tune="head"),
        measured=_all("19.7 98.6 98.6", "63.9 33.7 90.9", "10"),
    ),
    Row(
        "EWC, diagonal", "ewc", _ewc,
        measured=_all("19.7 98.6 98.6", "75.1 8.7 82.0", "85.3 11.0 95.2"),
    ),
    Row("LwF", "lwf", _lwf, measured=_all("19.7 98.6 98.6", "60.9 34.8 88.5", "35.7 66.9 95.9")),
    Row("GPM, new rows free", "threshold", _gpm, measured=_all(*GPM_MEASURED)),
    Row("GPM, new rows projected", "threshold", _gpm_projected, measured=_all(*GPM_MEASURED)),
    Row(
        "replay of k samples", "rate", lambda b, k, v, s: Replay(b, budget=k, tune="head", seed=s), True,
        measured=_all("83.3 9.9 79.1", "73.7 19.3 89.2", "73.1 25.1 95.6", k=True),
    ),
    Row(
        "k anchors, outputs held", "anchors",
        lambda b, k, v, s: Anchored(b, k=k, strength=v, new_bias=NEW_BIAS, seed=s), True,
        measured=_all("83.4 14.4 94.9", "84.0 4.4 87.5", "88.2 5.3 93.0", k=True),
    ),
    Row(
        "frequent directions with tail", "strength", _tail, True,
        measured=_all("90.3 7.3 96.2", "85.8 3.5 88.4", "91.5 0.8 92.1", k=True)
        | _average(digits_5=84.6, digits_10=88.6, rotated_5=67.6, rotated_10=77.4, rotated_20=83.0)
        | _average(clinc150_10=37.4, clinc150_50=88.6),
    ),
    Row(
        "low rank and diagonal (`spectral`)", "strength", _spectral, True,
        measured=_average(digits_5=88.5, digits_10=89.9, digits_20=92.0)
        | _average(rotated_5=80.9, rotated_10=83.6, rotated_20=85.8, rotated_50=86.6)
        | _average(clinc150_10=92.1, clinc150_50=91.9, clinc150_150=91.2),
    ),
    Row(
        "full second moment", "strength", _full,
        measured=_all("92.1 6.0 96.9", "86.6 2.8 88.8", "91.2 0.6 91.7"),
    ),
    Row(
        "squared error, closed form, tail", "ridge",
        lambda b, k, v, s: ClosedForm(b, FrequentDirections(b.width + 1, k), strength=v), True,
        measured=_all("95.3 3.1 97.7", "89.5 2.7 91.6", "90.6 3.0 93.2", k=True),
    ),
    Row(
        "squared error, closed form, low rank and diagonal", "ridge",
        lambda b, k, v, s: ClosedForm(b, LowRankDiagonal(b.width + 1, k), strength=v), True,
        measured=_average(digits_5=92.3, digits_10=95.1, digits_20=96.1)
        | _average(rotated_5=86.2, rotated_10=87.6, rotated_20=89.9, rotated_50=91.5),
    ),
    Row(
        "squared error, full (joint ridge)", "ridge",
        lambda b, k, v, s: ClosedForm(b, SecondMoment(b.width + 1), strength=v),
        measured=_all("97.3 1.5 98.6", "92.9 2.8 95.2", "91.0 2.5 93.2"),
    ),
    Row(
        "joint cross-entropy", "rate", lambda b, k, v, s: Joint(b, tune="head"),
        measured=_all("92.5 3.7 95.5", "83.8 6.3 88.8", "94.2 1.2 95.2"),
    ),
)  # fmt: skip
