"""The model cards of the miniature DINOv2 and judge, filled from measured figures."""

from __future__ import annotations

from typing import Any

HEADER = """---
license: apache-2.0
library_name: transformers
pipeline_tag: {task}
tags: [miniature, autolora-eval]
---
"""

_DINOV2 = """# Miniature DINOv2

A `Dinov2Model` with 0.86 M parameters (five layers of width 128, patches of 8 × 8 pixels, images of
64 × 64), trained by `recipes.dinov2` on drawn pictures of one object on a background. It replaces
`facebook/dinov2-giant` on machines without a GPU or a model hub, and is loaded by the same calls.
The feature is the pooled CLS token. **Its numbers say nothing about DINOv2.**

## Training
It was trained by self-distillation as in DINOv2: a student predicts, from large and small crops,
what its moving average predicts from the large ones, with Sinkhorn-Knopp balancing and KoLeo. It
differs from DINOv2 in these points:

- It uses labels: the backbone starts from the vision tower of the miniature judge, and one term of
  the loss classifies the object. In the time available on a laptop, self-distillation from scratch
  learned colours but not shapes.
- A term of the loss keeps the mean of the unit features small, so that features of different
  pictures have a cosine near zero.
- Patches are not masked. Colours are not augmented, because they are part of the content.

It took {steps:,} steps of {batch_size} pictures, all of them new, in {minutes:.0f} minutes on one
CPU core.

## Results
These are measured on {queries} pictures of scenes (object, colour, background) that are not in the
training data, half of them free drawings and half pixel art. Chance is 0.125. The linear probe is
fitted to other scenes. The nearest neighbours are among 4,000 other pictures of all scenes.

| accuracy | object | colour | background |
| --- | --- | --- | --- |
| five nearest neighbours | {nn_object:.3f} | {nn_colour:.3f} | {nn_background:.3f} |
| linear probe | {probe_object:.3f} | {probe_colour:.3f} | {probe_background:.3f} |

Diversity (one minus the mean pairwise cosine) of sets of 16 pictures, mean over 24 sets:

| set | diversity |
| --- | --- |
| one scene, one drawing in pixel art, blurred a little | {one_scene_canonical_pixel_art:.3f} |
| one scene, pixel art of varying position and size | {one_scene_pixel_art:.3f} |
| one scene, free drawings | {one_scene_free:.3f} |
| different scenes, pixel art | {different_scenes_pixel_art:.3f} |
| different scenes, free drawings | {different_scenes_free:.3f} |

Mean cosine of random pictures: {mean_cosine:.3f}. Size: {megabytes:.2f} MB in float16.
"""

CLASSIFIER = """The classifier makes errors too. On drawn pictures of scenes that are not in the
training data, the object is correct for {object_free:.3f} (free drawings) and
{object_pixel_art:.3f} (pixel art), mangled objects are recognized as such in
{mangled_read_as_none:.3f} of cases, and the style grade is exact for {grade_exact:.3f}."""


def dinov2_card(figures: dict[str, Any]) -> str:
    """The card of the miniature DINOv2, from its figures.json."""
    recipe = figures["training"]["recipe"]
    flat = {f"nn_{name}": value for name, value in figures["neighbours"].items()}
    flat |= {f"probe_{name}": value for name, value in figures["probe"].items()}
    return HEADER.format(task="image-feature-extraction") + _DINOV2.format(
        **flat,
        **figures["diversity"],
        queries=figures["queries"],
        mean_cosine=figures["mean_cosine_of_random_pictures"],
        megabytes=figures["bytes"] / 1e6,
        steps=recipe["steps"],
        batch_size=recipe["batch_size"],
        minutes=figures["training"]["seconds"] / 60,
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def agreement_table(title: str, figures: dict[str, Any]) -> str:
    """Shares of correct scores, in all and for each true score, as Markdown."""
    lines = [
        f"{title} ({figures['count']} pictures; invalid replies {figures['invalid']:.3f})",
        "",
        "| score | truth | pictures | exact | within one | mean reply |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for score in ("prompt", "style"):
        whole = figures[score]
        lines.append(
            f"| {score} | all | {figures['count']} | {whole['exact']:.3f} "
            f"| {whole['within_one']:.3f} | |"
        )
        for truth, row in whole["by_true_score"].items():
            lines.append(
                f"| {score} | {truth} | {row['count']} | {row['exact']:.3f} "
                f"| {row['within_one']:.3f} | {_number(row['mean_reply'])} |"
            )
    mangled = figures.get("prompt_of_mangled")
    if mangled:
        lines.append(
            f"| prompt | mangled objects | | {mangled['exact']:.3f} "
            f"| {mangled['within_one']:.3f} | |"
        )
    return "\n".join(lines)


def swap_row(title: str, figures: dict[str, float]) -> str:
    """How often the score falls with one word replaced, as a row of a Markdown table."""
    values = " | ".join(f"{figures[n]:.3f}" for n in ("object", "colour", "background", "any"))
    return f"| {title} | {values} |"
