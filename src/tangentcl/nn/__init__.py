"""Networks: backbones, adapters, heads and features."""

from tangentcl.nn.backbone import Backbone, BackboneCard, backbone, from_module
from tangentcl.nn.extract import extract_features
from tangentcl.nn.feature_store import FeatureStore
from tangentcl.nn.heads import CosineLinear, GrowingLinear, PrototypeHead
from tangentcl.nn.peft import add_lora, add_peft, linear_roles
from tangentcl.nn.weights import trainable_parameters, weights_sha256

__all__ = [
    "Backbone",
    "BackboneCard",
    "CosineLinear",
    "FeatureStore",
    "GrowingLinear",
    "PrototypeHead",
    "add_lora",
    "add_peft",
    "backbone",
    "extract_features",
    "from_module",
    "linear_roles",
    "trainable_parameters",
    "weights_sha256",
]
