"""Protection of a linear head on frozen features at equal memory: ``python -m benchmarks.spectral``."""
