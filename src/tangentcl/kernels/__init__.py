"""Kernels: two batches in, a linear operator between their output spaces out."""

from tangentcl.kernels.choice import Choice
from tangentcl.kernels.conjugate import ConjugateKernel
from tangentcl.kernels.feature import FeatureKernel
from tangentcl.kernels.kernel import Kernel
from tangentcl.kernels.network import plain_attention
from tangentcl.kernels.ntk import EmpiricalNTK
from tangentcl.kernels.pseudo import PseudoNTK
from tangentcl.kernels.sketch import SketchedNTK

__all__ = [
    "Choice",
    "ConjugateKernel",
    "EmpiricalNTK",
    "FeatureKernel",
    "Kernel",
    "PseudoNTK",
    "SketchedNTK",
    "plain_attention",
]
