"""Pre-training of the bundled backbone on images that programs draw (formula-driven supervision)."""
