"""Networks: backbones, adapters, heads and features."""
