"""For processes that test with vLLM's CPU build: let its torchvision be imported.

That is a CUDA build, which fails beside a CPU torch for want of operators that nothing here calls.
They are declared, without an implementation, the moment before torchvision is imported.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from typing import Any

_OPERATORS = (
    *("nms", "qnms", "roi_align", "qroi_align", "_roi_align_backward", "ps_roi_align"),
    *("_ps_roi_align_backward", "roi_pool", "_roi_pool_backward", "ps_roi_pool"),
    *("_ps_roi_pool_backward", "deform_conv2d", "_deform_conv2d_backward"),
)
_kept: list[Any] = []


class _Declares(MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            if torch.version.cuda is None:
                library = torch.library.Library("torchvision", "DEF")
                for operator in _OPERATORS:
                    library.define(f"{operator}(Tensor a) -> Tensor")
                _kept.append(library)
        return None


sys.meta_path.insert(0, _Declares())
