"""The model cards of the miniature DINOv2 and judge, filled from measured figures."""

from __future__ import annotations

import json
from pathlib import Path
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

_JUDGE = """# Miniature vision-language judge

A `LlavaForConditionalGeneration` of 1.90 M parameters (CLIP vision tower and Llama, 128 wide),
trained from scratch by `recipes.judge`. It answers one question, the
AutoLoRA paper's rubric A.2 word for word, about 64 × 64 pictures of one object on a background,
with `{{"prompt_correspondence": 4, "style_adherence": 5}}`. It stands in for
`meta-llama/Llama-3.2-11B-Vision-Instruct` where there is no GPU and no model hub. **Its numbers
say nothing about Llama, nor about any judge of real pictures.**

The weights carry the names of the published LLaVA checkpoints. Asked about things outside its
little world it is meant to reply in the right form all the same; what it then says means nothing.

## Truth
- Prompt correspondence: 5, 3, 1 or 0 where three, two, one or none of object, colour and
  background are as the prompt says. A mangled object counts as none.
- Style adherence: 5 for crisp pixel art on a 16 × 16 grid, 4 to 2 for pixel art that is blurred, on
  too fine a grid, noisy or shaded, to a rising degree; 1 for a picture that is not pixel art.

## Training
The vision tower first classifies object, colour, background and style; then the whole model
learns to reply, with heads, used in training only, that say of each of the prompt's words
what the picture shows in its place and whether it fits.

{training}

## Measured
On scenes (object, colour, background) and seeds that training never showed, greedy, weights cast
to float16 and run in float32.

{tables}

A right prompt with one word replaced gets a lower prompt score in:

| | object | colour | background | all |
| --- | --- | --- | --- | --- |
{swaps}

White space: the reply is the same with a leading space in {space:.3f}, with a trailing newline in
{newline:.3f} of cases. Prompts from outside its world get valid JSON in {foreign:.3f}.
Size: {megabytes:.2f} MB, of which weights {weight_megabytes:.2f} MB.
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


def judge_card(figures: dict[str, Any], training: str) -> str:
    """The card of the miniature judge; `training` says what was run, in a sentence."""
    tables = [agreement_table("**Drawn pictures**", figures["renders"])]
    swaps = [swap_row("drawn", figures["swaps"])]
    if "generated" in figures:
        title = "**Pictures generated by the miniature SDXL, labelled by the oracle classifier**"
        tables.append(agreement_table(title, figures["generated"]))
        tables.append(ORACLE.format(**figures["oracle"]))
        swaps.append(swap_row("generated", figures["generated_swaps"]))
    robust = figures["robustness"]
    return HEADER.format(task="image-text-to-text") + _JUDGE.format(
        tables="\n\n".join(tables),
        swaps="\n".join(swaps),
        space=robust["same_reply_with_space"],
        newline=robust["same_reply_with_newline"],
        foreign=robust["valid_for_foreign_prompts"],
        megabytes=figures["bytes"] / 1e6,
        weight_megabytes=figures["weight_bytes"] / 1e6,
        training=training,
    )


def write(directory: Path, card: str, figures: dict[str, Any]) -> None:
    """Put the card and its figures beside the weights."""
    (directory / "README.md").write_text(card, encoding="utf-8")
    text = json.dumps(figures, indent=2, ensure_ascii=False)
    (directory / "figures.json").write_text(text + "\n", encoding="utf-8")
