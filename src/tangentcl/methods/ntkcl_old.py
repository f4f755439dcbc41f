"""What the losses of NTK-CL need of earlier tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from tangentcl.losses import old_basis, released_direction
from tangentcl.methods.ntkcl_settings import NTKCLSettings


@dataclass(frozen=True)
class OldClasses:
    """Old class means as the losses see them; constant during a task.

    Attributes:
        unit: prototypes as the losses see them, rows of length one ``[M, D]``. labels: theirs ``[M]``.
        centre: taken from features before they are compared with the old space, ``[D]``.
        directions: for "projected_energy" the basis ``[D, k]``, for "cross_kernel" the unit rows ``[M, D]`` after
            centring, for "released" the vector r ``[D]``.
    """

    unit: Tensor
    labels: Tensor
    centre: Tensor
    directions: Tensor


def describe_old(
    prototypes: Tensor,
    labels: Tensor,
    centre: Tensor,
    chosen: NTKCLSettings,
    *,
    unit: Callable[[Tensor], Tensor],
    n_outputs: int,
) -> OldClasses:
    """Old classes and the space they span.

    Args:
        prototypes: ``[M, D]``, of the classes ``labels``. centre: ``[D]``.
        unit: rows of length one, as the losses compare them.
        n_outputs: rows that the release decomposes, with zeros in place of new classes.
    """
    centre = centre * float(chosen.centre_prototypes)
    directions = prototypes.new_zeros(len(centre), 0)
    if chosen.orthogonality == "released":
        directions = released_direction(prototypes, n_outputs)
    elif chosen.orthogonality == "projected_energy":
        directions = old_basis(unit(prototypes - centre), energy=chosen.orthogonality_energy)
    elif chosen.orthogonality == "cross_kernel":
        directions = unit(prototypes - centre)
    return OldClasses(unit(prototypes), labels, centre, directions)
