"""Continual-learning methods compared at equal memory on four settings; see `benchmarks.protect.__main__`."""
