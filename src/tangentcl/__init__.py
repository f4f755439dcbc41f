"""tangentcl: parameter-efficient continual learning seen through the Neural Tangent Kernel."""

__version__ = "0.1.0"
