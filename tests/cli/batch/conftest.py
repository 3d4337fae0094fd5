"""The fixtures of `mvw batch` as a process."""

from batch_process import batch, batch_in, fickle_path, forker

__all__ = ["batch", "batch_in", "fickle_path", "forker"]  # fixtures
