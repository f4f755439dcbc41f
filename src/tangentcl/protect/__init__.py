"""Penalties and projections that keep what a model has learned, for any training loop."""
