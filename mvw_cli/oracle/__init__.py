"""What withdrawal has to equal, and whether the engine does."""
