"""Evaluate guidance methods on LoRA-tuned diffusion models.

The names below are imported when they are first used, so that `import autolora_eval` loads no
torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from autolora_eval._version import __version__

if TYPE_CHECKING:
    from autolora_eval.benchmark.load import load_benchmark
    from autolora_eval.comparing import compare
    from autolora_eval.explaining import explain
    from autolora_eval.generation.sampler import SampledImage, Sampler, SamplerModel
    from autolora_eval.guidance.autolora import AutoLoRAGuidance
    from autolora_eval.guidance.registry import Method, MethodParameters
    from autolora_eval.plan import make_plan
    from autolora_eval.run_folder import open_run
    from autolora_eval.scoring.diversity import diversity
    from autolora_eval.scoring.torchmetric import PairwiseCosineDiversity
    from autolora_eval.stages import run, score_images

_HOMES = {
    "AutoLoRAGuidance": "autolora_eval.guidance.autolora",
    "Method": "autolora_eval.guidance.registry",
    "MethodParameters": "autolora_eval.guidance.registry",
    "PairwiseCosineDiversity": "autolora_eval.scoring.torchmetric",
    "SampledImage": "autolora_eval.generation.sampler",
    "Sampler": "autolora_eval.generation.sampler",
    "SamplerModel": "autolora_eval.generation.sampler",
    "compare": "autolora_eval.comparing",
    "diversity": "autolora_eval.scoring.diversity",
    "explain": "autolora_eval.explaining",
    "load_benchmark": "autolora_eval.benchmark.load",
    "make_plan": "autolora_eval.plan",
    "open_run": "autolora_eval.run_folder",
    "run": "autolora_eval.stages",
    "score_images": "autolora_eval.stages",
}

__all__ = [
    "AutoLoRAGuidance",
    "Method",
    "MethodParameters",
    "PairwiseCosineDiversity",
    "SampledImage",
    "Sampler",
    "SamplerModel",
    "__version__",
    "compare",
    "diversity",
    "explain",
    "load_benchmark",
    "make_plan",
    "open_run",
    "run",
    "score_images",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _HOMES:
        raise AttributeError(f"module 'autolora_eval' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
