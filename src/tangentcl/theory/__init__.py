"""Quantities of the tangent-kernel theory of continual learning, one family a file, each a function of tensors."""

from tangentcl.theory.anchor import anchor_efficiency, relative_move
from tangentcl.theory.capacity import capacity_radius, rademacher_term
from tangentcl.theory.centring import centred_moment, mean_features
from tangentcl.theory.certificate import (
    Certificate,
    exact_certificate,
    gaussian_head_error,
    mean_above,
    pac_bayes_bound,
    sampled_certificate,
)
from tangentcl.theory.dimension import effective_dimension, participation_ratio
from tangentcl.theory.evidence import EvidenceCurve, evidence_curve
from tangentcl.theory.gram_health import GramHealth, condition_number, gram_spectrum, label_alignment, rkhs_norm
from tangentcl.theory.interplay import class_forgetting, forgetting_vector, interplay_energy
from tangentcl.theory.laziness import Laziness, kernel_alignment, kernel_change, linearisation_error
from tangentcl.theory.overlap import kernel_overlap
from tangentcl.theory.probe import TangentProbe
from tangentcl.theory.ridge_step import RidgeStep, anchored_ridge
from tangentcl.theory.risk import RiskCurve, learning_curve, risk_curve
from tangentcl.theory.staleness import moved_prototypes, staleness
from tangentcl.theory.subspaces import main_directions, principal_cosines, subspace_energy
from tangentcl.theory.views import effective_samples, held_out_residuals, view_correlation

__all__ = [
    "Certificate",
    "EvidenceCurve",
    "GramHealth",
    "Laziness",
    "RidgeStep",
    "RiskCurve",
    "TangentProbe",
    "anchor_efficiency",
    "anchored_ridge",
    "capacity_radius",
    "centred_moment",
    "class_forgetting",
    "condition_number",
    "effective_dimension",
    "effective_samples",
    "evidence_curve",
    "exact_certificate",
    "forgetting_vector",
    "gaussian_head_error",
    "gram_spectrum",
    "held_out_residuals",
    "interplay_energy",
    "kernel_alignment",
    "kernel_change",
    "kernel_overlap",
    "label_alignment",
    "learning_curve",
    "linearisation_error",
    "main_directions",
    "mean_above",
    "mean_features",
    "moved_prototypes",
    "pac_bayes_bound",
    "participation_ratio",
    "principal_cosines",
    "rademacher_term",
    "relative_move",
    "risk_curve",
    "rkhs_norm",
    "sampled_certificate",
    "staleness",
    "subspace_energy",
    "view_correlation",
]
