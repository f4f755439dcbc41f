"""Linear algebra without large matrices: operators known by their action, spectra and solves in the cheaper space."""

from tangentcl.linalg.operator import DenseOperator, GramOperator, KroneckerIdentity, LinearOperator
from tangentcl.linalg.solve import minimum_norm, ridge
from tangentcl.linalg.spectrum import Spectrum, gram_spectrum, with_constant

__all__ = [
    "DenseOperator",
    "GramOperator",
    "KroneckerIdentity",
    "LinearOperator",
    "Spectrum",
    "gram_spectrum",
    "minimum_norm",
    "ridge",
    "with_constant",
]
