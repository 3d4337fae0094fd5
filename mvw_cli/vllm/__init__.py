"""vLLM in place of this project's own engine: the same sessions, events and records."""
