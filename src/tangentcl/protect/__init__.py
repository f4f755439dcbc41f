"""What keeps old outputs in place while new tasks are learned."""
