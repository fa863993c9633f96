"""The guiders that diffusers ships: their papers and formulas, what they cost, what is broken.

Each guider has one declaration. The list of methods, the plan's costs, the guider checks, and the
refusal of what cannot work use it. Its facts were found by running diffusers 0.42 and are tested.
Nothing here imports diffusers or torch.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path

from autolora_eval.guidance import diffusers_defects as rules
from autolora_eval.guidance.diffusers_defects import Parameters, Refusal
from autolora_eval.guidance.method import ActiveInterval, GuiderSpec, NfePerStep


@dataclass(frozen=True)
class DiffusersGuider:
    """One guider of `diffusers.guiders`.

    Attributes:
        name: its class.
        display_name: what it is commonly called.
        source: the paper with its arXiv number, or where it was published.
        formula: the rule of the paper, in the notation of `docs/reference/guiders.md`.
        nfe: (parameters with their defaults, step, number of steps) → function evaluations.
        refuse: (parameters with their defaults, the pipeline's class in its model_index.json, or
            None if unknown) → why they cannot work and what to do, or None.
        spec: what it promises.
        notes: where diffusers' version differs from the paper's.
    """

    name: str
    display_name: str
    source: str
    formula: str
    nfe: NfePerStep
    refuse: Refusal = lambda p, pipeline: None
    spec: GuiderSpec = field(default_factory=GuiderSpec)
    notes: str = ""

    @property
    def path(self) -> str:
        """The dotted path that a benchmark names it by."""
        return f"diffusers.guiders.{self.name}"

    @cached_property
    def defaults(self) -> Parameters:
        """The constructor's defaults."""
        arguments = constructor_arguments(guider_sources()[self.name])
        return {one.arg: ast.literal_eval(value) for one, value in arguments if value is not None}

    def nfe_per_step(self, parameters: Parameters, step: int, num_steps: int) -> int:
        """Return the function evaluations at a step; parameters left out have their defaults."""
        return self.nfe({**self.defaults, **parameters}, step, num_steps)

    def refusal(self, parameters: Parameters, pipeline: str | None) -> str | None:
        """Return why parameters cannot work on a pipeline, and what to do; None if they can."""
        why = self.refuse({**self.defaults, **parameters}, pipeline)
        return None if why is None else f"{self.path}: {why}"


def diffusers_guider(path: str) -> DiffusersGuider | None:
    """Return the declaration of a guider by its class name or dotted path; None if it has none."""
    if "." in path and not path.startswith("diffusers."):
        return None
    return DIFFUSERS_GUIDERS.get(path.rpartition(".")[2])


@cache
def guider_sources() -> dict[str, ast.ClassDef]:
    """Return the syntax trees of diffusers' guiders. Importing the classes takes seconds."""
    spec = find_spec("diffusers")
    if spec is None or spec.origin is None:
        return {}
    files = sorted((Path(spec.origin).parent / "guiders").glob("*.py"))
    trees = [ast.parse(file.read_bytes()) for file in files]
    return {node.name: node for t in trees for node in t.body if isinstance(node, ast.ClassDef)}


def constructor_arguments(source: ast.ClassDef) -> list[tuple[ast.arg, ast.expr | None]]:
    """Return the arguments of a class's constructor, each with its default."""
    functions = (node for node in source.body if isinstance(node, ast.FunctionDef))
    made = next((node for node in functions if node.name == "__init__"), None)
    if made is None:
        return []
    taken, defaults = made.args.args[1:], made.args.defaults
    return list(zip(taken, [*[None] * (len(taken) - len(defaults)), *defaults], strict=True))


_SKIPS = (
    "diffusers adds CFG to it. It skips the first step of its own interval, which by default is "
    "the first fifth of the steps."
)


def _skipping(prefix: str) -> GuiderSpec:
    """Return the promises of guiders that add a perturbed prediction to CFG in its own window."""
    scale = f"{prefix}_scale"
    inner = ActiveInterval(f"{prefix}_start", f"{prefix}_stop", disable_params={scale: 0.0})
    return GuiderSpec(
        identity_params={"guidance_scale": 1.0, scale: 0.0},
        active_intervals=(ActiveInterval(disable_params={"guidance_scale": 1.0}), inner),
        linear_params=("guidance_scale", scale),
        linear_in_predictions=True,
    )


_LINEAR = GuiderSpec(linear_params=("guidance_scale",))
_BILINEAR = GuiderSpec(linear_params=("guidance_scale",), linear_in_predictions=True)
_DECLARED = (
    DiffusersGuider(
        name="AdaptiveProjectedGuidance",
        display_name="APG",
        source="Sadat, Hilliges and Weber 2024, arXiv 2410.02416",
        formula=(
            "Δ = ε(x, y) − ε(x, ∅) + β · (Δ of the previous step), then Δ ← Δ · min(1, r / ‖Δ‖); "
            "Δ∥ and Δ⊥ are the parts of Δ parallel and orthogonal to ε(x, y); "
            "ε(x, y) + (w − 1) (Δ⊥ + η Δ∥)"
        ),
        nfe=rules.cfg_passes,
        spec=_LINEAR,
        notes=(
            "diffusers computes ε(x, ∅) + w (Δ⊥ + η Δ∥). This equals the paper's formula only if "
            "η = 1, without rescaling and momentum. For the paper's formula, set "
            "use_original_formulation and a guidance scale of w − 1. The paper applies it to the "
            "denoised image, and diffusers to the prediction."
        ),
    ),
    DiffusersGuider(
        name="AdaptiveProjectedMixGuidance",
        display_name="APG-mix",
        source="HunyuanImage 2.1, Tencent 2025; APG: arXiv 2410.02416",
        formula="CFG at w up to a step, APG at its own scale after it",
        nfe=rules.cfg_passes,
        spec=GuiderSpec(identity_params={"guidance_scale": 1.0}, linear_params=("guidance_scale",)),
    ),
    DiffusersGuider(
        name="AutoGuidance",
        display_name="AutoGuidance",
        source="Karras et al. 2024, arXiv 2406.02507",
        formula="ε_bad(x, y) + w (ε(x, y) − ε_bad(x, y))",
        nfe=rules.cfg_passes,
        refuse=rules.layer_refusal("auto_guidance_layers", "auto_guidance_config"),
        spec=_BILINEAR,
        notes=(
            "The paper's bad model is a smaller or less trained one, with the prompt. In "
            "diffusers, it is the same model with some layers skipped and the negative prompt."
        ),
    ),
    DiffusersGuider(
        name="ClassifierFreeGuidance",
        display_name="CFG",
        source="Ho and Salimans 2022, arXiv 2207.12598",
        formula="ε(x, ∅) + w (ε(x, y) − ε(x, ∅))",
        nfe=rules.cfg_passes,
        spec=_BILINEAR,
        notes="With use_original_formulation it is the paper's: ε(x, y) + w (ε(x, y) − ε(x, ∅)).",
    ),
    DiffusersGuider(
        name="ClassifierFreeZeroStarGuidance",
        display_name="CFG-Zero*",
        source="Fan et al. 2025, arXiv 2503.18886",
        formula=(
            "s = ⟨ε(x, y), ε(x, ∅)⟩ / ‖ε(x, ∅)‖²; s ε(x, ∅) + w (ε(x, y) − s ε(x, ∅)); "
            "0 in the first steps"
        ),
        nfe=rules.cfg_passes,
        refuse=rules.refuse_zero_star,
        spec=GuiderSpec(
            identity_params={"guidance_scale": 1.0, "zero_init_steps": 0},
            linear_params=("guidance_scale",),
        ),
        notes=(
            "zero_init_steps also acts at guidance_scale 1 and outside start and stop. The "
            "predictions of the zeroed steps are made and discarded."
        ),
    ),
    DiffusersGuider(
        name="FrequencyDecoupledGuidance",
        display_name="FDG",
        source="Sadat et al. 2025, arXiv 2506.19713",
        formula=(
            "in each level k of a Laplacian pyramid P: P_k(ε(x, ∅)) + w_k (P_k(ε(x, y)) − "
            "P_k(ε(x, ∅))); then the inverse of P"
        ),
        nfe=rules.fdg_passes,
        refuse=rules.refuse_fdg,
        spec=GuiderSpec(
            identity_params={"guidance_scales": [1.0, 1.0]},
            linear_in_predictions=True,
            required_effect=(),
        ),
        notes="Needs kornia.",
    ),
    DiffusersGuider(
        name="LTX2Guidance",
        display_name="LTX-2",
        source="Lightricks, LTX-2; its STG term: Hyung et al. 2024, arXiv 2411.18664",
        formula=("ε + (w − 1) (ε − ε(x, ∅)) + s (ε − ε_skip) + (m − 1) (ε − ε_alone), ε = ε(x, y)"),
        nfe=rules.ltx2_passes,
        refuse=rules.refuse_ltx2,
        spec=GuiderSpec(
            identity_params={"guidance_scale": 1.0, "stg_scale": 0.0, "modality_scale": 1.0},
            linear_params=("guidance_scale",),
            linear_in_predictions=True,
            required_effect=("guidance_scale",),
        ),
        notes=(
            "It is made for the video and audio of LTX-2. On image models, only its first guidance "
            "term works, which is CFG."
        ),
    ),
    DiffusersGuider(
        name="MagnitudeAwareGuidance",
        display_name="MAMBO-G",
        source="Zhu et al. 2025, arXiv 2508.03442",
        formula=("r = ‖ε(x, y) − ε(x, ∅)‖ / ‖ε(x, ∅)‖; CFG at the scale 1 + (w − 1) exp(−α r)"),
        nfe=rules.cfg_passes,
        refuse=rules.refuse_mambo,
        spec=_LINEAR,
    ),
    DiffusersGuider(
        name="PerturbedAttentionGuidance",
        display_name="PAG",
        source="Ahn et al. 2024, arXiv 2403.17377",
        formula="ε(x, y) + s (ε(x, y) − ε_perturbed(x, y)), self-attention maps set to identity",
        nfe=rules.skip_passes("perturbed_guidance"),
        refuse=rules.refuse_pag,
        spec=_skipping("perturbed_guidance"),
        notes=_SKIPS,
    ),
    DiffusersGuider(
        name="SkipLayerGuidance",
        display_name="SLG",
        source="Stability AI, Stable Diffusion 3.5; STG: Hyung et al. 2024, arXiv 2411.18664",
        formula="CFG + s (ε(x, y) − ε_skip(x, y)), layers left out in ε_skip",
        nfe=rules.skip_passes("skip_layer_guidance"),
        refuse=rules.refuse_slg,
        spec=_skipping("skip_layer_guidance"),
        notes=_SKIPS,
    ),
    DiffusersGuider(
        name="SmoothedEnergyGuidance",
        display_name="SEG",
        source="Hong 2024, arXiv 2408.00760",
        formula="ε(x, y) + s (ε(x, y) − ε_blurred(x, y)), queries of self-attention blurred",
        nfe=rules.skip_passes("seg_guidance"),
        refuse=rules.refuse_seg,
        spec=_skipping("seg_guidance"),
        notes="diffusers adds CFG to it if guidance_scale is not 1.",
    ),
    DiffusersGuider(
        name="TangentialClassifierFreeGuidance",
        display_name="TCFG",
        source="Kwon et al. 2025, arXiv 2503.18137",
        formula=(
            "CFG with ε(x, ∅) projected on the first right singular vector of the pair "
            "(ε(x, y), ε(x, ∅))"
        ),
        nfe=rules.cfg_passes,
        spec=_LINEAR,
        notes="is_conditional raises an error; ControlNet pipelines read it in guess mode.",
    ),
)
DIFFUSERS_GUIDERS: dict[str, DiffusersGuider] = {guider.name: guider for guider in _DECLARED}
