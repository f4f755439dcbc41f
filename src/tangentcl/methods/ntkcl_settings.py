"""What NTK-CL leaves open, as switches, and the three presets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from tangentcl.errors import ConfigError, nearest

Branches = Literal["both", "channel", "patch", "joint"]
Prompts = Literal["auto", "linear", "dct", "attention", "static"]
FusionKind = Literal["linear", "attention", "released", "sum"]
EmaKind = Literal["mean", "decay", "off"]
Loss = Literal["cross_entropy", "squared"]
Dissimilarity = Literal["supcon_proto", "released", "off"]
Orthogonality = Literal["projected_energy", "cross_kernel", "released", "off"]
AnchorKind = Literal["previous", "ema", "initial", "off"]
Compensation = Literal["ridge", "mean", "off"]
ScoredViews = Literal["all", "fused"]
TrainedSections = Literal["all", "adapted", "current"]
Preset = Literal["intended", "released", "theory"]


@dataclass(frozen=True, kw_only=True)
class NTKCLSettings:
    """The switches of `NTKCL`, where each is explained; the defaults are the preset "intended"."""

    branches: Branches = "both"
    prompts: Prompts = "auto"
    prompt_share: float | None = None
    fusion: FusionKind = "linear"
    ema: EmaKind = "mean"
    ema_decay: float = 0.0
    ema_after_last: bool = True
    frozen_dropout: bool = False
    ptm_section: bool = True
    section_weights: tuple[float, ...] | None = None
    scored_views: ScoredViews = "all"
    compensation: Compensation = "ridge"
    first_block: int = 0
    cached_views: int = 0
    cached_stem: bool = False
    trained_sections: TrainedSections = "adapted"
    section_norm_train: bool = False
    loss: Loss = "cross_entropy"
    proxy_scale: float = 16.0
    dissimilarity: Dissimilarity = "supcon_proto"
    dissimilarity_weight: float = 0.2
    orthogonality: Orthogonality = "projected_energy"
    orthogonality_weight: float = 0.1
    orthogonality_energy: float = 0.95
    centre_prototypes: bool = True
    anchor: AnchorKind = "previous"
    anchor_weight: float = 1e-3
    anchor_biases: bool = True
    ridge: float | None = None

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            choices, value = get_args(hint), getattr(self, name)
            if choices and all(isinstance(choice, str) for choice in choices) and value not in choices:
                known = ", ".join(choices)
                raise ConfigError(f"{name} must be one of {known}, got {value!r}.{nearest(str(value), choices)}")
        for name in ("dissimilarity_weight", "orthogonality_weight", "anchor_weight", "ridge"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ConfigError(f"{name} must be a finite number of at least 0, got {value!r}")
        share = self.prompt_share
        if share is not None and not 0 < share < float("inf"):
            raise ConfigError(
                f"prompt_share must be a finite number above 0, or None to count each prompt as a token, got {share!r}"
            )
        for name in ("first_block", "cached_views"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ConfigError(f"{name} must be a whole number of at least 0, got {value!r}")
        if self.cached_views and self.frozen_dropout:
            raise ConfigError("cached_views needs frozen branches that stay the same, frozen_dropout makes them random")
        if self.cached_stem and not self.cached_views:
            raise ConfigError("cached_stem needs fixed views to store: set cached_views to at least 1")
        if not 0 < self.orthogonality_energy <= 1:
            raise ConfigError(f"orthogonality_energy must be in (0, 1], got {self.orthogonality_energy!r}")

    def weights(self, n_views: int = 1) -> tuple[float, ...]:
        """Weights of the sections of one view, or of several side by side, which share the pre-trained section.

        Raises:
            ConfigError: ``section_weights`` of another number.

        >>> NTKCLSettings().weights(), NTKCLSettings(ptm_section=False).weights(2)
        ((1.0, 0.3, 0.1), (0.15, 0.05, 0.15, 0.05))
        """
        default = (*((1.0,) if self.ptm_section else ()), *(() if self.ema == "off" else (0.3,)), 0.1)
        chosen = default if self.section_weights is None else tuple(self.section_weights)
        if len(chosen) != len(default):
            raise ConfigError(
                f"section_weights need one number for each of the {len(default)} sections [pre-trained | running mean "
                f"| current] that these settings have, got {list(chosen)}"
            )
        shared, own = chosen[: int(self.ptm_section)], chosen[int(self.ptm_section) :]
        return shared + tuple(weight / n_views for weight in own) * n_views

    def changed(self, **switches: Any) -> NTKCLSettings:
        """The same settings but for the switches that are not None.

        >>> NTKCLSettings().changed(branches="patch", ridge=None).branches
        'patch'
        """
        return dataclasses.replace(self, **{name: value for name, value in switches.items() if value is not None})


PRESETS: dict[str, NTKCLSettings] = {
    "intended": NTKCLSettings(),
    "released": NTKCLSettings(
        prompts="static",
        fusion="released",
        ema_after_last=False,
        frozen_dropout=True,
        ptm_section=False,
        scored_views="fused",
        trained_sections="all",
        compensation="off",
        proxy_scale=1.0,
        dissimilarity="released",
        orthogonality="released",
        orthogonality_weight=1e-4,
        centre_prototypes=False,
        anchor_biases=False,
    ),
    "theory": NTKCLSettings(
        loss="squared", proxy_scale=1.0, dissimilarity="off", orthogonality="cross_kernel", ridge=1.0
    ),
}


def preset_settings(name: str) -> NTKCLSettings:
    """The settings of a preset.

    Raises:
        ConfigError: an unknown name.

    >>> preset_settings("released").dissimilarity
    'released'
    """
    if name not in PRESETS:
        raise ConfigError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}.{nearest(name, PRESETS)}")
    return PRESETS[name]
