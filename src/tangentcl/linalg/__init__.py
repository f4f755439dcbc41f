"""Linear algebra without large matrices: operators known by their action, spectra and solves in the cheaper space."""

from tangentcl.linalg.operator import DenseOperator, GramOperator, KroneckerIdentity, LinearOperator
from tangentcl.linalg.sketch import SecondMoment, Sketch
from tangentcl.linalg.sketch_file import load_sketch, save_sketch
from tangentcl.linalg.sketch_kinds import make_sketch, restored
from tangentcl.linalg.solve import minimum_norm, ridge
from tangentcl.linalg.spectrum import Spectrum, gram_spectrum, with_constant
from tangentcl.linalg.streamed_sketch import FrequentDirections, LowRankDiagonal

__all__ = [
    "DenseOperator",
    "FrequentDirections",
    "GramOperator",
    "KroneckerIdentity",
    "LinearOperator",
    "LowRankDiagonal",
    "SecondMoment",
    "Sketch",
    "Spectrum",
    "gram_spectrum",
    "load_sketch",
    "make_sketch",
    "minimum_norm",
    "restored",
    "ridge",
    "save_sketch",
    "with_constant",
]
