"""Loss terms as functions of tensors: one idea, one file."""

from tangentcl.losses.dissimilarity import released_dissimilarity, supcon_with_prototypes
from tangentcl.losses.orthogonality import (
    cross_kernel_energy,
    old_basis,
    projected_energy,
    released_direction,
    released_orthogonality,
)

__all__ = [
    "cross_kernel_energy",
    "old_basis",
    "projected_energy",
    "released_direction",
    "released_dissimilarity",
    "released_orthogonality",
    "supcon_with_prototypes",
]
