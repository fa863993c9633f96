"""A model's scheduler in place of its pipeline's, and the steps as guiders and schedulers see them.

Named defects are those of diffusers 0.42 in
https://github.com/huggingface/diffusers/tree/v0.42.1/src/diffusers.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import diffusers
import torch
from diffusers.guiders import BaseGuidance

from autolora_eval._errors import AutoLoRAEvalError, first_line
from autolora_eval._files import Json
from autolora_eval.config.schema import Scheduler


def make_scheduler(spec: Scheduler, own: Mapping[str, Any], num_steps: int) -> Any:  # noqa: ANN401
    """Return a scheduler with the settings of the pipeline's own, but for the options.

    It is tried on small noise first.

    Args:
        spec: its class and options.
        own: the configuration of the pipeline's own scheduler.
        num_steps: the number of denoising steps.

    Raises:
        AutoLoRAEvalError: if the class refuses its options, fits another kind of model, or does
            not sample each image by itself.
    """
    name = spec.class_name
    try:
        kind = getattr(diffusers, name)
        scheduler = kind.from_config(dict(own), **spec.options)
        _require_same_kind(kind, scheduler.config, own)
        together, alone = (_denoised(scheduler, seeds, num_steps) for seeds in ([0, 1], [1]))
    except AutoLoRAEvalError:
        raise
    except Exception as error:  # each scheduler refuses in its own way
        raise _refused(
            name,
            f"cannot be used here: {type(error).__name__}: {first_line(error).rstrip('.')}. Change "
            "its options, or choose another class.",
        ) from error
    if scheduler.timesteps[0] < scheduler.timesteps[-1]:
        raise _refused(name, "goes from images to noise. Choose another class.")
    if not together.isfinite().all():
        raise _refused(name, f"makes NaN in {num_steps} steps. Change its options or the steps.")
    if not torch.allclose(together[1:], alone, atol=1e-5):
        raise _refused(
            name,
            "draws noise that is not the image's own: an image would depend on the others of its "
            "batch. Choose another class, such as DPMSolverMultistepScheduler with "
            "'algorithm_type: sde-dpmsolver++'.",
        )
    return scheduler


def _refused(name: str, problem: str) -> AutoLoRAEvalError:
    return AutoLoRAEvalError(f"the scheduler {name} {problem}")


def _require_same_kind(kind: type, new: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse a scheduler of flows for a diffusion model, and the other way round."""
    name, is_flow = kind.__name__, _is_flow(kind.__name__, new)
    if _is_flow(str(own.get("_class_name")), own):
        if not is_flow:
            raise _refused(
                name,
                "is not for a model that predicts a flow, as this one does. Choose a class whose "
                "name begins with FlowMatch, or set 'use_flow_sigmas: true, prediction_type: "
                "flow_prediction' if it has these options.",
            )
    elif is_flow or "prediction_type" not in inspect.signature(kind).parameters:
        raise _refused(name, "is not for a model that predicts noise. Choose another class.")


def _is_flow(name: str, config: Mapping[str, Any]) -> bool:
    return name.startswith("FlowMatch") or config.get("prediction_type") == "flow_prediction"


def _denoised(scheduler: Any, seeds: Sequence[int], num_steps: int) -> torch.Tensor:  # noqa: ANN401
    """Run a scheduler on small noise, with a tenth of each sample in place of a prediction."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    shift = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}
    scheduler.set_timesteps(num_steps, **shift)
    scales = hasattr(scheduler, "scale_model_input")
    latents = torch.cat([torch.randn((1, 4, 8, 8), generator=one) for one in generators])
    latents = latents * getattr(scheduler, "init_noise_sigma", 1.0)
    with own_noise(scheduler, generators):
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(latents, t) if scales else latents
            latents = scheduler.step(0.1 * scaled, t, latents, return_dict=False)[0]
    return latents


@contextmanager
def own_noise(scheduler: Any, generators: list[torch.Generator]) -> Iterator[None]:  # noqa: ANN401
    """Let a scheduler draw each image's noise from the image's own generator.

    The loops of SD3, Qwen-Image and Z-Image give the scheduler no generator, so that it would draw
    from the global one (modular_pipelines/stable_diffusion_3/denoise.py).
    """
    step = scheduler.step
    if "generator" in inspect.signature(step).parameters:
        scheduler.step = partial(step, generator=generators)
    try:
        yield
    finally:
        scheduler.step = step


def tell_steps(guider: BaseGuidance, scheduler: Any) -> None:  # noqa: ANN401
    """Let a guider see denoising steps if the scheduler takes several timesteps for one.

    The loops count timesteps, of which Heun has 2N - 1, but tell the guider that there are N, so
    that its interval would end halfway (modular_pipelines/stable_diffusion_xl/denoise.py).
    """
    set_state = guider.set_state

    def set_steps(step: int, num_inference_steps: int, timestep: torch.Tensor) -> None:
        now = step * num_inference_steps // len(scheduler.timesteps)
        set_state(step=now, num_inference_steps=num_inference_steps, timestep=timestep)

    guider.set_state = set_steps


def describe_scheduler(scheduler: Any) -> Json:  # noqa: ANN401
    """Return class and configuration as JSON; infinite numbers are text."""
    config = json.loads(scheduler.to_json_string(), parse_constant=str)
    own = {key: value for key, value in config.items() if not key.startswith("_")}
    return {"class": type(scheduler).__name__, **own}
