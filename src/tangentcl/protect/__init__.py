"""What is kept of past tasks to protect them: references, importances, low-rank updates, without their samples."""
