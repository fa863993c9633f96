"""Which pipelines a guidance method can act on, told by the class that `model_index.json` names.

Nothing is loaded and diffusers is not asked: it is where a class stands in neither list, before
the first model is loaded (`generation.pipeline.open_pipeline`).
"""

from __future__ import annotations

import json
from pathlib import Path

from autolora_eval.benchmark.sources import Source
from autolora_eval.errors import UsageError

INDEX = "model_index.json"
# Those that the tests sample, each against a loop written by hand.
TESTED = (
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "QwenImagePipeline",
    "ZImagePipeline",
)
# Those whose modular pipeline in diffusers 0.42 has no guider; a test holds it against diffusers.
WITHOUT_GUIDER = (
    "Cosmos3OmniPipeline",
    "Flux2Pipeline",
    "FluxImg2ImgPipeline",
    "FluxInpaintPipeline",
    "FluxKontextPipeline",
    "FluxPipeline",
    "Ideogram4Pipeline",
)
WHAT_WORKS = f"What works: {', '.join(TESTED[:-1])} and {TESTED[-1]}."


def pipeline_class(index: Path, reference: str) -> str:
    """Return the class that a pipeline folder's `model_index.json` names.

    Args:
        index: the file.
        reference: the pipeline as the benchmark states it, for messages.

    Raises:
        UsageError: it is no such file, or names code that would have to be run.
    """
    try:
        content = json.loads(index.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"{index}: not valid JSON: {error}.") from error
    name = content.get("_class_name") if isinstance(content, dict) else None
    if isinstance(name, list):
        raise UsageError(
            f"'{reference}' is a pipeline with code of its own ({', '.join(map(str, name))}), "
            f"which is not run. {WHAT_WORKS}"
        )
    if not isinstance(name, str) or not name:
        raise UsageError(
            f"the {INDEX} of '{reference}' names no '_class_name', so it is no pipeline of "
            "diffusers. Write one with save_pretrained."
        )
    return name


def check_pipeline(pipeline: Source, index: Path | None) -> None:
    """Refuse a pipeline that is known to take no guider.

    Args:
        pipeline: where it is.
        index: its `model_index.json`, if that is on this machine.

    Raises:
        UsageError: its class takes no guider, or is not to be read from the file.
    """
    if index is None:
        return
    name = pipeline_class(index, pipeline.reference)
    if name in WITHOUT_GUIDER:
        raise UsageError(no_guider(pipeline.reference, name))


def no_guider(reference: str, name: str) -> str:
    """Return the message for a pipeline without a guider."""
    return (
        f"'{reference}' is a {name}, and the modular pipeline that diffusers has for it takes no "
        f"guider, so that no guidance method can act on it. {WHAT_WORKS}"
    )
