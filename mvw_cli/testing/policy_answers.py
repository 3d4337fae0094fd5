"""What a policy has said, held against the contract. Torch is imported only where it is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mvw_cli.policy import Restore, StepView, Withdraw

if TYPE_CHECKING:
    from torch import Tensor


def check_decisions(answer: object, view: StepView) -> None:
    """Assert that what a policy has said after a token can be carried out."""
    import torch

    if answer is None:
        return
    several = answer if isinstance(answer, list | tuple) else [answer]
    for one in several:
        assert isinstance(one, Withdraw | Restore), (
            f"after token {view.step} it says {one!r}: return Withdraw(), Restore() or None"
        )
        for layer, mask in (one.keep or {}).items() if isinstance(one, Withdraw) else ():
            where = f"after token {view.step}, at layer {layer}"
            assert layer in view.layers, f"{where}: it holds no vision"
            check_mask(mask, torch.ones(view.vision_tokens, dtype=torch.bool), where)


def check_mask(mask: Tensor, present: Tensor, where: str) -> None:
    """Assert that a mask is one of the vision tokens that are there.

    present: # (N,) bool
    """
    import torch

    assert mask.dtype == torch.bool, f"{where}: {mask.dtype} instead of torch.bool"
    assert mask.shape == present.shape, f"{where}: {tuple(mask.shape)} for {len(present)} tokens"
    assert not (mask & ~present).any(), f"{where}: it names what is gone"


def plain(value: Any) -> Any:
    """Write a tensor as a list; leave the rest."""
    return value.tolist() if hasattr(value, "tolist") else value
