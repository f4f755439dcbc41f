"""Loss terms as functions of tensors: one idea, one file."""

from tangentcl.losses.dissimilarity import released_dissimilarity, supcon_with_prototypes
from tangentcl.losses.fused_classes import fuse_images, n_pairs, pair_index, partners
from tangentcl.losses.orthogonality import (
    cross_kernel_energy,
    old_basis,
    projected_energy,
    released_direction,
    released_orthogonality,
)
from tangentcl.losses.orthonormality import orthonormality
from tangentcl.losses.spectrum import log_condition, orthogonality_gap, spectrum_penalty
from tangentcl.losses.task_cross_entropy import task_cross_entropy

__all__ = [
    "cross_kernel_energy",
    "fuse_images",
    "log_condition",
    "n_pairs",
    "old_basis",
    "orthogonality_gap",
    "orthonormality",
    "pair_index",
    "partners",
    "projected_energy",
    "released_direction",
    "released_dissimilarity",
    "released_orthogonality",
    "spectrum_penalty",
    "supcon_with_prototypes",
    "task_cross_entropy",
]
