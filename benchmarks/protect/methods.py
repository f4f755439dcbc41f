"""The methods that are compared: keywords, the one strength that is tuned, its values, and what each remembers.

A strength is a keyword of the method, or ``rate``: a factor of the setting's learning rates, backbone and head alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.protect.settings import Setting

RATE = "rate"
REFERENCE = "spectral"  # the row that the others are tested against

# Grids, three values each, from weak to strong.
RATES = (1 / 3, 1.0, 3.0)
SPECTRAL = (0.03, 0.3, 3.0)
SPECTRAL_HEAD = (0.01, 0.03, 0.1)
L2SP = (0.1, 1.0, 10.0)
EWC = (1e2, 1e3, 1e4)
EWC_LORA = (1e2, 1e3, 1e4)
ANCHORS = (1.0, 10.0, 100.0)
LWF = (0.3, 1.0, 3.0)
OLORA = (0.1, 0.5, 2.0)
GPM = (0.9, 0.97, 0.99)
DERPP = (0.1, 0.2, 0.5)
SHRINKAGE = (1e-4, 1e-2, 1e-1)


@dataclass(frozen=True)
class Family:
    """Keywords that methods of a kind share where the backbone is adapted and where a head is trained; None: no run."""

    lora: dict[str, Any]
    head: dict[str, Any] | None


FEATURES = Family({}, {})  # nothing learned by gradient
TUNED = Family({"tune": "lora", "rank": 8}, {"tune": "head"})
ADAPTED = Family({"rank": 8}, None)
PROMPTED = Family({}, None)


@dataclass(frozen=True)
class Entry:
    """A row of the table.

    Attributes:
        label: of the row. name: in `tangentcl.methods.METHODS`, where it may still be missing.
        family: what it shares with others of its kind.
        memory: what it keeps of old tasks, in words.
        strength: what is tuned, or None where a method has nothing to tune or chooses by itself.
        grid: its values. head_grid: those where a head alone trains; None: the same.
        keywords: further ones.
        budget: "samples" if it stores as many as fill the memory of the sketch, "logits" if it keeps those beside them.
    """

    label: str
    name: str
    family: Family
    memory: str
    strength: str | None = RATE
    grid: tuple[float, ...] = RATES
    head_grid: tuple[float, ...] | None = None
    keywords: dict[str, Any] = field(default_factory=dict)
    budget: str | None = None

    def settings(self, setting: Setting) -> dict[str, Any] | None:
        """The method's keywords without its strength, or None where it has no place in the setting."""
        shared = self.family.lora if setting.adapts == "lora" else self.family.head
        if shared is None:
            return None
        budget = {"budget": setting.budget(logits=self.budget == "logits")} if self.budget else {}
        return {"name": self.name, **shared, **self.keywords, **budget}

    def values(self, setting: Setting) -> tuple[float, ...]:
        """What is tried; nothing where there is nothing to choose."""
        if self.strength is None:
            return ()
        return self.head_grid if self.head_grid is not None and setting.adapts == "head" else self.grid


def _spectral(label: str, family: Family = TUNED, **keywords: Any) -> Entry:
    return Entry(label, "spectral", family, "sketch", "strength", SPECTRAL, SPECTRAL_HEAD, keywords)


ENTRIES: tuple[Entry, ...] = (
    Entry("finetune, all logits", "finetune", TUNED, "nothing", keywords={"logits": "all"}),
    Entry("finetune, current logits", "finetune", TUNED, "nothing", keywords={"logits": "current"}),
    Entry("joint", "joint", TUNED, "all samples"),
    Entry("ncm", "ncm", FEATURES, "class means", None),
    Entry("ranpac", "ranpac", FEATURES, "Gram matrix", None, keywords={"n_units": 2000}),
    Entry("slda", "slda", FEATURES, "covariance", "shrinkage", SHRINKAGE),
    Entry("adapt once, ranpac", "ranpac", ADAPTED, "Gram matrix", keywords={"n_units": 2000, "first_session": "lora"}),
    Entry("adapt once, slda", "slda", ADAPTED, "covariance", keywords={"first_session": "lora"}),
    Entry("replay", "replay", TUNED, "samples", budget="samples"),
    Entry("der++", "derpp", TUNED, "samples and logits", "logits_weight", DERPP, budget="logits"),
    Entry("l2-sp", "l2sp", TUNED, "weights", "strength", L2SP),
    Entry("ewc", "ewc", TUNED, "weights, Fisher diagonal", "strength", EWC),
    Entry("ewc-lora", "ewc_lora", ADAPTED, "weights, Fisher diagonal", "strength", EWC_LORA),
    Entry("lwf", "lwf", TUNED, "old model", "strength", LWF),
    Entry("ogd", "ogd", TUNED, "gradients", keywords={"directions": 20}),
    Entry("gpm", "gpm", TUNED, "input subspaces", "threshold", GPM),
    Entry("o-lora", "olora", ADAPTED, "an adapter per task", "strength", OLORA),
    Entry("inflora", "inflora", ADAPTED, "an adapter per task, input subspaces"),
    Entry("sd-lora", "sdlora", ADAPTED, "an adapter per task"),
    Entry("slca", "slca", TUNED, "class Gaussians"),
    Entry("lae", "lae", ADAPTED, "slow adapter"),
    Entry("aper", "aper", ADAPTED, "class means"),
    Entry("ease", "ease", ADAPTED, "an adapter per task, class means"),
    Entry("l2p", "l2p", PROMPTED, "prompts"),
    Entry("dualprompt", "dualprompt", PROMPTED, "prompts"),
    Entry("coda-prompt", "coda_prompt", PROMPTED, "prompts"),
    Entry("ntk-cl", "ntkcl", PROMPTED, "class means, running means of modules"),
    _spectral(REFERENCE),
    _spectral("spectral, gradients", ADAPTED, weights="gradients"),
    _spectral("spectral, jacobian", ADAPTED, form="jacobian"),
    Entry(
        "anchors, function space",
        "derpp",
        TUNED,
        "samples and logits",
        "logits_weight",
        ANCHORS,
        keywords={"labels_weight": 0.0},
        budget="logits",
    ),
)


def chosen(labels: list[str] | None, entries: tuple[Entry, ...] = ENTRIES) -> list[Entry]:
    """The entries with these labels or names, or all.

    Raises:
        SystemExit: a label that no entry has.
    """
    if labels is None:
        return list(entries)
    unknown = [label for label in labels if not any(label in (e.label, e.name) for e in entries)]
    if unknown:
        known = ", ".join(entry.label for entry in entries)
        raise SystemExit(f"no method {unknown[0]!r}. Known: {known}.")
    return [entry for entry in entries if {entry.label, entry.name} & set(labels)]
