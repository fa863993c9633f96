"""The public names: pinned here, importable and documented; tests/test_cli.py: and lazy."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import autolora_eval

PUBLIC = {
    "autolora_eval": {
        *("AutoLoRAEvalError", "MissingDependencyError", "UsageError"),
        *("AutoLoRAGuidance", "GuiderMethod", "Method", "MethodParameters"),
        *("SampledImage", "Sampler", "SamplerModel"),
        *("DiversityMetric", "Extractor", "ExtractorKind"),
        *("Drawing", "FigureData", "FigureKind"),
        *("PairwiseCosineDiversity", "Run", "__version__", "compare", "diversity", "explain"),
        *("load_benchmark", "make_plan", "open_run", "run", "score_images"),
    },
    "autolora_eval.guider_checks": {
        *("ActiveInterval", "CheckFailedError", "CheckResult", "CheckSkippedError", "GuiderSpec"),
        *("check_guider", "guider_checks_generator", "parametrize_with_checks"),
    },
    "autolora_eval.generation.sampler_api": {"SampledImage", "Sampler", "SamplerModel"},
}


@pytest.mark.parametrize("module", PUBLIC)
def test_the_public_names_are_these(module: str) -> None:
    assert set(importlib.import_module(module).__all__) == PUBLIC[module]


EXAMPLES = ("_files", "_text", "generation.image_sets", "runs.manifest", "scoring.diversity")


@pytest.mark.parametrize("module", EXAMPLES)
def test_the_examples_in_docstrings_are_true(module: str) -> None:
    found = doctest.testmod(importlib.import_module(f"autolora_eval.{module}"))
    assert (found.failed, found.attempted > 0) == (0, True)


@pytest.mark.model  # for the libraries that some names load
@pytest.mark.parametrize("name", sorted(PUBLIC["autolora_eval"] - {"__version__"}))
def test_every_public_name_is_importable_and_documented(name: str) -> None:
    assert (getattr(autolora_eval, name).__doc__ or "").strip()


def test_no_module_hides_a_public_name() -> None:
    """An imported module of the same name would replace the function."""
    assert dir(autolora_eval) == sorted(autolora_eval.__all__)
    modules = {module.name for module in pkgutil.iter_modules(autolora_eval.__path__)}
    assert modules & set(autolora_eval.__all__) == set()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'rnu'"):
        _ = autolora_eval.rnu
