"""What diffusers' guiders cost, and which parameters of them fail.

Each function was found by running diffusers 0.42 and is tested against it. Parameters come with
their defaults filled in; `pipeline` is the pipeline's class, or None if it is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from math import isclose
from typing import Any

from autolora_eval.guidance.method import NfePerStep

SDXL, SD3 = "StableDiffusionXLPipeline", "StableDiffusion3Pipeline"
Parameters = Mapping[str, Any]
Refusal = Callable[[Parameters, str | None], str | None]

_EDGES, _SCALES = ("start", "stop"), "guidance_scales"
_UNET_PATH = "mid_block.attentions.0.transformer_blocks"


def _neutral(p: Parameters) -> float:
    """Return the scale at which CFG is the conditional prediction."""
    return 0.0 if p["use_original_formulation"] else 1.0


def _off(p: Parameters) -> bool:
    return isclose(p["guidance_scale"], _neutral(p))


def _inside(p: Parameters, step: int, n: int) -> bool:
    return int(p["start"] * n) <= step < int(p["stop"] * n)


def cfg_passes(p: Parameters, step: int, n: int) -> int:
    """Return 2 where CFG acts, 1 elsewhere."""
    return 2 if p["enabled"] and _inside(p, step, n) and not _off(p) else 1


def skip_passes(prefix: str) -> NfePerStep:
    """Return a count: CFG's passes, and a perturbed pass within the guider's own window.

    Args:
        prefix: begins the names of its parameters `…_scale`, `…_start` and `…_stop`.
    """

    def passes(p: Parameters, step: int, n: int) -> int:
        first, last = int(p[f"{prefix}_start"] * n), int(p[f"{prefix}_stop"] * n)
        # diffusers leaves the window's first step out: `first < step`, where CFG has `<=`.
        acts = first < step < last and not isclose(p[f"{prefix}_scale"], 0.0)
        return cfg_passes(p, step, n) + (1 if p["enabled"] and acts else 0)

    return passes


def fdg_passes(p: Parameters, step: int, n: int) -> int:
    """Return 2 where any frequency level is guided, 1 elsewhere."""
    start, stop = ([p[edge]] if isinstance(p[edge], float) else p[edge] for edge in _EDGES)
    off = _neutral(p)
    acts = int(min(start) * n) <= step < int(max(stop) * n)
    return 2 if p["enabled"] and acts and any(not isclose(w, off) for w in p[_SCALES]) else 1


def ltx2_passes(p: Parameters, step: int, n: int) -> int:
    """Return 1, and 1 more for each of the three terms whose scale is not neutral."""
    if not (p["enabled"] and _inside(p, step, n)):
        return 1
    neutral = {"guidance_scale": 1.0, "stg_scale": 0.0, "modality_scale": 1.0}
    return 1 + sum(not isclose(p[scale], value) for scale, value in neutral.items())


def refuse_mambo(p: Parameters, pipeline: str | None) -> str | None:
    """MAMBO-G fails on images."""
    return (
        "it fails on image latents, [B, C, H, W]: diffusers takes torch.norm over three "
        "dimensions, which torch refuses. Remove it until diffusers has fixed it."
    )


def refuse_seg(p: Parameters, pipeline: str | None) -> str | None:
    """SEG changes nothing."""
    if isclose(p["seg_guidance_scale"], 0.0):
        return None
    return (
        "its smoothed prediction equals the plain one: diffusers' prepare_models does not count "
        "the predictions, so the blur is never applied and one pass per step is wasted. "
        "Set seg_guidance_scale: 0.0 (plain CFG), or remove it until diffusers has fixed it."
    )


def refuse_zero_star(p: Parameters, pipeline: str | None) -> str | None:
    """CFG-Zero* divides by zero if it is rescaled."""
    if p["guidance_rescale"] > 0 and p["zero_init_steps"] > 0:
        return (
            "guidance_rescale divides by the standard deviation of a prediction that "
            "zero_init_steps has set to zero: every image would be NaN. "
            "Set guidance_rescale: 0.0 or zero_init_steps: 0."
        )
    return None


def refuse_fdg(p: Parameters, pipeline: str | None) -> str | None:
    """FDG needs kornia, and guides all of its levels or none."""
    if find_spec("kornia") is None:
        return "it needs kornia, which is not installed: pip install kornia"
    edges = [p[edge] for edge in _EDGES]
    if any(isinstance(edge, int) for edge in edges):
        return "it takes start and stop as decimals only: write 0.0 for 0 and 1.0 for 1."
    off = _neutral(p)
    idle = [isclose(w, off) for w in p[_SCALES]]
    lists = any(not isinstance(edge, float) and len(set(edge)) > 1 for edge in edges)
    if lists or (any(idle) and not all(idle)):
        return (
            "a frequency level that is not guided takes another level's prediction or none at "
            f"all. Use one start and one stop, and no scale of exactly {off} beside others."
        )
    return None


def refuse_ltx2(p: Parameters, pipeline: str | None) -> str | None:
    """Two of LTX-2's terms need its own pipeline."""
    if isclose(p["stg_scale"], 0.0) and isclose(p["modality_scale"], 1.0):
        return None
    if pipeline is not None and pipeline.startswith("LTX2"):
        return None
    return (
        "stg_scale and modality_scale need passes that only LTX-2's denoising loop makes. "
        "Leave them at 0.0 and 1.0 (plain CFG)."
    )


def layer_refusal(layers: str, config: str) -> Refusal:
    """Return the refusal that the three guiders that skip layers have in common."""

    def refuse(p: Parameters, pipeline: str | None) -> str | None:
        if p[layers] is not None:
            return _refuse_layers(layers, config, pipeline)
        why = (_refuse_config(one, pipeline) for one in _configs(p[config]))
        return next((f"{config}: {reason}" for reason in why if reason), None)

    return refuse


def _refuse_layers(layers: str, config: str, pipeline: str | None) -> str | None:
    path = "transformer_blocks" if pipeline == SD3 else _UNET_PATH
    use = f"Use {config}: {{indices: [0], fqn: {path}}}."
    if pipeline == SDXL:
        return f"{layers} finds no layers in a UNet. {use}"
    if layers == "perturbed_guidance_layers":
        return None
    return f"{layers} fails in diffusers, which takes each number for a list. {use}"


def _refuse_config(config: Mapping[str, Any], pipeline: str | None) -> str | None:
    if pipeline == SDXL and config.get("fqn", "auto") == "auto":
        return f"layers of a UNet are not found by themselves. Set fqn: {_UNET_PATH}."
    if 0.0 < config.get("dropout", 1.0) < 1.0:
        return (
            f"a dropout of {config['dropout']} draws from the global random generator, so that "
            "seeds do not decide images. Use 1.0."
        )
    if pipeline == SD3 and config.get("skip_attention", True):
        return (
            "on SD3 diffusers can skip the feed-forward part of a layer only. "
            "Set skip_attention: false."
        )
    return None


def _configs(value: Any) -> list[Mapping[str, Any]]:  # noqa: ANN401
    """Return the layer configurations as mappings, however they were given."""
    many = value if isinstance(value, list | tuple) else [] if value is None else [value]
    return [one if isinstance(one, Mapping) else one.to_dict() for one in many]


def _refuse_without_cfg(p: Parameters, scale: str) -> str | None:
    if not _off(p) or isclose(p[scale], 0.0):
        return None
    return (
        "without CFG diffusers gives the perturbed pass the negative prompt and perturbs no "
        f"layer. Use a guidance_scale other than {_neutral(p)}."
    )


def refuse_pag(p: Parameters, pipeline: str | None) -> str | None:
    """PAG works on SDXL, beside CFG, with layers named by their path."""
    scale = "perturbed_guidance_scale"
    if pipeline == SD3 and not isclose(p[scale], 0.0):
        return (
            "diffusers cannot perturb the attention of SD3 (JointAttnProcessor2_0 is not "
            "registered with its hooks). It works on SDXL."
        )
    layers = layer_refusal("perturbed_guidance_layers", "perturbed_guidance_config")
    return _refuse_without_cfg(p, scale) or layers(p, pipeline)


def refuse_slg(p: Parameters, pipeline: str | None) -> str | None:
    """SLG works beside CFG; on SD3 for feed-forward parts only."""
    layers = layer_refusal("skip_layer_guidance_layers", "skip_layer_config")
    return _refuse_without_cfg(p, "skip_layer_guidance_scale") or layers(p, pipeline)
