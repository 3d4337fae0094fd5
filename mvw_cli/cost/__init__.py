"""What a model costs, from its configuration: bytes, FLOPs, and the bounds that follow."""
