"""Lets torchvision's CUDA build be imported beside a CPU build of torch, for the vLLM of the tests.

The package index has torchvision only as a CUDA build. Its compiled half does not load beside a
torch without CUDA, which torchvision survives but for two operators that its Python half describes
at import whether they are there or not: `nms` and `qnms`, for boxes in pictures. vLLM imports
torchvision for its image processors, which call neither. So both are declared, not implemented,
as soon as torchvision has found that its own are missing. Where it has them, nothing is done.

`make` copies this file into that environment's site-packages, with a .pth file that
imports it whenever its Python starts; it must therefore import nothing itself until it is needed.
"""

import sys

NEEDED_BY = "torchvision._meta_registrations"
OPERATORS = ("nms", "qnms")
_kept = []  # torch forgets the operators of a library that is garbage


class DeclareOperators:
    """Finds no module: it is asked before each is imported, and waits for the one in question."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        """Declare the operators just before torchvision describes them."""
        extension = sys.modules.get("torchvision.extension")
        if name == NEEDED_BY and not _kept and extension and not extension._has_ops():
            import torch

            library = torch.library.Library("torchvision", "FRAGMENT")
            for operator in OPERATORS:
                library.define(
                    f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )
            _kept.append(library)
        return None


sys.meta_path.insert(0, DeclareOperators)
