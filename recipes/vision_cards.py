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

A `Dinov2Model` of 0.86 M parameters (five layers, 128 wide, patches of 8 × 8 of a 64 × 64
picture), trained by `recipes.dinov2` on drawn pictures of
one object on a background. It stands in for `facebook/dinov2-giant` where there is no GPU and no
model hub, and is loaded by the same calls; the feature is the pooled CLS token. **Its numbers say
nothing about DINOv2.**

## Training
Self-distillation as in DINOv2: a student predicts from large and small crops what its moving
average says of the large ones, with Sinkhorn-Knopp balancing and KoLeo. What differs from DINOv2:
- it is not free of labels: the backbone starts from the miniature judge's vision tower, which was
  trained on known truths, and one term goes on naming the object. Self-distillation from scratch
  learnt colours and nothing of shapes in the time that a laptop has;
- one term keeps the mean unit feature short, so that cosines do not start from a common part;
- no masked patches; colours are never disturbed, since here they are part of the content.

{training}

## Measured
On {queries} pictures of scenes (object, colour, background) that no training picture showed, half
of them free renders and half pixel art. Chance is 0.125. The probe is fitted to other scenes;
neighbours are sought among 4,000 other pictures of all scenes.

| accuracy | object | colour | background |
| --- | --- | --- | --- |
| five nearest neighbours | {nn_object:.3f} | {nn_colour:.3f} | {nn_background:.3f} |
| linear probe | {probe_object:.3f} | {probe_colour:.3f} | {probe_background:.3f} |

Diversity (one minus the mean pairwise cosine) of sets of 16 pictures, mean over 24 sets:

| set | diversity |
| --- | --- |
| one scene, one drawing in pixel art, blurred a little | {one_scene_canonical_pixel_art:.3f} |
| one scene, pixel art of varying place and size | {one_scene_pixel_art:.3f} |
| one scene, free renders | {one_scene_free:.3f} |
| different scenes, pixel art | {different_scenes_pixel_art:.3f} |
| different scenes, free renders | {different_scenes_free:.3f} |

Mean cosine of random pictures: {mean_cosine:.3f}. Size: {megabytes:.2f} MB in float16.
"""

ORACLE = """The oracle is a small network of its own and bounds what can be seen here: on drawn
pictures of held-out scenes it names the object right in {object_free:.3f} (free) and
{object_pixel_art:.3f} (pixel art), calls a mangled object none in {mangled_read_as_none:.3f}, and
grades the style exactly in {grade_exact:.3f}."""


def dinov2_card(figures: dict[str, Any], training: str) -> str:
    """The card of the miniature DINOv2; `training` says what was run, in a sentence."""
    flat = {f"nn_{name}": value for name, value in figures["neighbours"].items()}
    flat |= {f"probe_{name}": value for name, value in figures["probe"].items()}
    return HEADER.format(task="image-feature-extraction") + _DINOV2.format(
        **flat,
        **figures["diversity"],
        queries=figures["queries"],
        mean_cosine=figures["mean_cosine_of_random_pictures"],
        megabytes=figures["bytes"] / 1e6,
        training=training,
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def agreement_table(title: str, figures: dict[str, Any]) -> str:
    """Shares of right scores, whole and for each true score, as Markdown."""
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
