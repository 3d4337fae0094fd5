"""Running out of memory: how it is told from other errors, and what can be given back first."""

from __future__ import annotations

import gc

import torch

from mvw_cli.engine.types import EngineDied


def ran_out(error: BaseException) -> bool:
    """Whether an error says that the device or the machine has no more memory to give."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # The CPU's allocator raises a plain RuntimeError (c10/core/impl/alloc_cpu.cpp).
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def lost_device(error: BaseException) -> bool:
    """Whether an error has left what serves unusable: the accelerator for this process, or vLLM.

    A failed kernel (an assertion in it, an illegal address) makes every later call fail too.
    """
    if isinstance(error, EngineDied):
        return True
    return isinstance(error, torch.AcceleratorError) and not ran_out(error)


def relieve(device: torch.device) -> None:
    """Give back what nobody uses: cycles of Python, and blocks that the allocator holds."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
