"""Kernels: two batches in, a linear operator between their output spaces out."""

from tangentcl.kernels.feature import FeatureKernel
from tangentcl.kernels.kernel import Kernel

__all__ = ["FeatureKernel", "Kernel"]
