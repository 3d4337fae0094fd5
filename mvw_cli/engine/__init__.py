"""The engine: encoded requests in, events out. It serves models through transformers alone."""
