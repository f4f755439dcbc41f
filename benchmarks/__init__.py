"""Measurements, each a ratio against a stated alternative in the same run. Run one as ``python -m benchmarks.NAME``."""
