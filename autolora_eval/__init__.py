"""Evaluate guidance methods on LoRA-tuned diffusion models.

The names below are imported when they are first used, so that `import autolora_eval` loads no
torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from autolora_eval._version import __version__

if TYPE_CHECKING:
    from autolora_eval._pipeline import run, score_images
    from autolora_eval.analysis.compare_runs import compare
    from autolora_eval.analysis.explain import explain
    from autolora_eval.config.load import load_benchmark
    from autolora_eval.config.plan import make_plan
    from autolora_eval.generation.sampler_api import SampledImage, Sampler, SamplerModel
    from autolora_eval.guidance.autolora import AutoLoRAGuidance
    from autolora_eval.guidance.method import GuiderMethod
    from autolora_eval.plugins.signatures import MethodParameters
    from autolora_eval.runs.folder import open_run
    from autolora_eval.scoring.diversity import diversity
    from autolora_eval.scoring.torch_metric import PairwiseCosineDiversity

_HOMES = {
    "AutoLoRAGuidance": "autolora_eval.guidance.autolora",
    "GuiderMethod": "autolora_eval.guidance.method",
    "MethodParameters": "autolora_eval.plugins.signatures",
    "PairwiseCosineDiversity": "autolora_eval.scoring.torch_metric",
    "SampledImage": "autolora_eval.generation.sampler_api",
    "Sampler": "autolora_eval.generation.sampler_api",
    "SamplerModel": "autolora_eval.generation.sampler_api",
    "compare": "autolora_eval.analysis.compare_runs",
    "diversity": "autolora_eval.scoring.diversity",
    "explain": "autolora_eval.analysis.explain",
    "load_benchmark": "autolora_eval.config.load",
    "make_plan": "autolora_eval.config.plan",
    "open_run": "autolora_eval.runs.folder",
    "run": "autolora_eval._pipeline",
    "score_images": "autolora_eval._pipeline",
}

__all__ = [
    "AutoLoRAGuidance",
    "GuiderMethod",
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
