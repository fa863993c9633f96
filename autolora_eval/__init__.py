"""Evaluate guidance methods on LoRA-tuned diffusion models.

Each name below is imported on first use, so `import autolora_eval` loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from autolora_eval._errors import AutoLoRAEvalError, MissingDependencyError, UsageError
    from autolora_eval.analysis.explain import explain
    from autolora_eval.config.load import load_benchmark
    from autolora_eval.config.plan import make_plan
    from autolora_eval.generation.sampler_api import SampledImage, Sampler, SamplerModel
    from autolora_eval.guidance.autolora import AutoLoRAGuidance
    from autolora_eval.guidance.method import GuiderMethod, Method
    from autolora_eval.pipeline.run_pipeline import compare, run, score_images
    from autolora_eval.plugins.signatures import MethodParameters
    from autolora_eval.report.figures._base import Drawing, FigureData, FigureKind
    from autolora_eval.runs.folder import Run, open_run
    from autolora_eval.scoring.diversity import diversity
    from autolora_eval.scoring.diversity_metric import DiversityMetric
    from autolora_eval.scoring.extractor import Extractor, ExtractorKind
    from autolora_eval.scoring.torch_metric import PairwiseCosineDiversity

_NAMES = {
    "_errors": ("AutoLoRAEvalError", "MissingDependencyError", "UsageError"),
    "analysis.explain": ("explain",),
    "config.load": ("load_benchmark",),
    "config.plan": ("make_plan",),
    "generation.sampler_api": ("SampledImage", "Sampler", "SamplerModel"),
    "guidance.autolora": ("AutoLoRAGuidance",),
    "guidance.method": ("GuiderMethod", "Method"),
    "pipeline.run_pipeline": ("compare", "run", "score_images"),
    "plugins.signatures": ("MethodParameters",),
    "report.figures._base": ("Drawing", "FigureData", "FigureKind"),
    "runs.folder": ("Run", "open_run"),
    "scoring.diversity": ("diversity",),
    "scoring.diversity_metric": ("DiversityMetric",),
    "scoring.extractor": ("Extractor", "ExtractorKind"),
    "scoring.torch_metric": ("PairwiseCosineDiversity",),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "AutoLoRAEvalError",
    "AutoLoRAGuidance",
    "DiversityMetric",
    "Drawing",
    "Extractor",
    "ExtractorKind",
    "FigureData",
    "FigureKind",
    "GuiderMethod",
    "Method",
    "MethodParameters",
    "MissingDependencyError",
    "PairwiseCosineDiversity",
    "Run",
    "SampledImage",
    "Sampler",
    "SamplerModel",
    "UsageError",
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
    if name not in _MODULES:
        raise AttributeError(f"module 'autolora_eval' has no attribute '{name}'")
    return getattr(importlib.import_module(f"autolora_eval.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
