"""What keeps old outputs in place while new tasks are learned: penalties and projections, for any training loop."""
