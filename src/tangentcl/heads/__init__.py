"""Classifiers over fixed features that learn a stream in one pass, and as well as from all of it at once."""

from tangentcl.heads.class_means import ClassMeans
from tangentcl.heads.gaussian import FeCAM, SharedGaussian
from tangentcl.heads.head import AnalyticHead, HeadForecast
from tangentcl.heads.kernel_ridge import ArcCosineRidge
from tangentcl.heads.lift import Lift, NoLift, NystromArcCosine, RandomReLU, arc_cosine_kernel
from tangentcl.heads.recursive import RecursiveRidge
from tangentcl.heads.ridge import RidgeHead
from tangentcl.heads.strength import Strength
from tangentcl.heads.truncated import Flush, TruncatedRidge

__all__ = [
    "AnalyticHead",
    "ArcCosineRidge",
    "ClassMeans",
    "FeCAM",
    "Flush",
    "HeadForecast",
    "Lift",
    "NoLift",
    "NystromArcCosine",
    "RandomReLU",
    "RecursiveRidge",
    "RidgeHead",
    "SharedGaussian",
    "Strength",
    "TruncatedRidge",
    "arc_cosine_kernel",
]
