"""The model card of the miniature judge with its two rubrics, filled from measured figures."""

from __future__ import annotations

from typing import Any

from recipes.character import NAME, TRAITS
from recipes.vision_cards import (
    CLASSIFIER,
    HEADER,
    agreement_table,
    swap_row,
)

_JUDGE = """# Miniature vision-language judge

A `LlavaForConditionalGeneration` with {parameters:.2f} M parameters (CLIP vision tower and Llama of
width 128), trained from scratch by `recipes`. It knows two rubrics for 64 × 64 images:

- the AutoLoRA paper's rubric A.2, verbatim, for one object on a background, with replies such as
  `{{"prompt_correspondence": 4, "style_adherence": 5}}`
- `prompts/rubrics/character_miniature.yaml`, modelled on the paper's A.1, for the creature {name}
  with its five traits, with replies such as `{{"score": 3, "reason": ["skin", "eyes", "belly"]}}`

It replaces `meta-llama/Llama-3.2-11B-Vision-Instruct` on machines without a GPU or a model hub.
**Its numbers say nothing about Llama, or about judges of real images.**

The weights have the names of the published LLaVA checkpoints. For other images or questions, the
replies usually have the right form, but their scores are meaningless.

## Definition of the scores
- Prompt correspondence: 5, 3, 1 or 0 if three, two, one or none of object, colour and background
  match the prompt. A mangled object does not match.
- Style adherence: 5 for crisp pixel art on a 16 × 16 grid; 4 to 2 for pixel art that is more and
  more blurred, noisy, shaded or on too fine a grid; 1 if the image is not pixel art.
- Presence of {name}: how many of its traits ({traits}) the image shows.
  A trait counts if it is complete, has its colour, and is on a body of the creature's shape: a
  green circle has presence 0. The reasons are these traits in this order, or "no {name} character".

## Training
First, the vision tower learns to classify object, colour, background and style. Then the whole
model learns to reply about prompts, with additional heads that are used only for training. They
predict, for each word of the prompt, what the image shows and whether it matches. This takes 50
minutes on one CPU core. Then the model learns both rubrics, with heads that predict the traits:

- {meeting}
- {knowing}
- {settling}

This took {seconds:.0f} minutes on one CPU core, which was partly shared with other work.

## Results: prompts and style
These are measured on scenes (object, colour, background) and seeds that are not in the training
data, with greedy decoding and float16 weights computed in float32.

{tables}

If one word of a matching prompt is replaced, the prompt score falls in this share of cases:

| | object | colour | background | all |
| --- | --- | --- | --- | --- |
{swaps}

"sure": only images for which the classifier has a {sure}. For the others,
even the matching prompt is uncertain.

With a leading space, the reply is the same in {space:.3f} of cases, and with a trailing newline in
{newline:.3f}. Prompts about other things get valid JSON in {foreign:.3f} of cases.

## Results: presence of {name}
The drawn pictures have sets of traits on backgrounds with which they do not occur in the training
data, including soft and half-formed creatures. The generated images have other seeds than the
training data. The character LoRAs of both base models made them, at all scales. A classifier labels
them. On decoded pictures, its presence is exact for {oracle_exact:.3f} and within one for
{oracle_within:.3f}.

| images | count | invalid | exact | within one | reasons correct |
| --- | --- | --- | --- | --- | --- |
{presence}

| truth | drawn: exact | within one | mean | generated: count | exact | within one | mean |
| --- | --- | --- | --- | --- | --- | --- | --- |
{by_truth}

Share of images for which the reply is correct about a trait:

| | {trait_names} |
| --- | {dashes} |
{trait_rows}

If a complete creature is drawn again without one trait, its score falls in this share of cases:
{drops}.
The score equals the number of reasons in {consistent:.3f} of the replies about drawn pictures.

Size: {megabytes:.2f} MB, of which weights {weight_megabytes:.2f} MB.
"""

_SETS = {
    "presence_drawn": "drawn",
    "presence_decoded": "drawn, through the autoencoder with some noise",
    "presence_generated": "generated with the character LoRAs",
    "presence_of_others": "generated without them: presence 0",
}
_SYSTEMS = {"generated_sdxl": "the miniature SDXL", "generated_sd3": "the miniature SD3"}


def _course(recipe: dict[str, Any], of_what: str) -> str:
    """What was done in one phase, in a sentence."""
    reading = recipe["reading"]
    others = recipe["others_per_batch"]
    return (
        f"{recipe['steps']:,} steps. Each has {reading['images_per_batch']} pictures with "
        f"{reading['questions_per_image']} questions about prompts, and "
        f"{recipe['creatures_per_batch']} pictures with and {others} without a creature for the "
        f"question about {NAME}. {reading['given_share']:.0%} of the former and "
        f"{recipe['given_share']:.0%} of the latter are {of_what}. The others are newly drawn."
    )


def _presence_row(name: str, found: dict[str, Any]) -> str:
    presence = found["presence"]
    return (
        f"| {name} | {found['count']} | {found['invalid']:.3f} | {presence['exact']:.3f} | "
        f"{presence['within_one']:.3f} | {found['reasons_right']:.3f} |"
    )


def _by_truth(figures: dict[str, Any]) -> str:
    drawn, generated = (
        figures[name]["presence"]["by_true_score"]
        for name in ("presence_drawn", "presence_generated")
    )
    lines = []
    for truth in map(str, range(6)):
        cells = [truth]
        for rows, counted in ((drawn, False), (generated, True)):
            row = rows.get(truth)
            values = ["–"] * 3
            if row is not None:
                values = [f"{row[k]:.3f}" for k in ("exact", "within_one")]
                values.append("–" if row["mean_reply"] is None else f"{row['mean_reply']:.2f}")
            cells += ([str(row["count"]) if row else "0"] if counted else []) + values
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _trait_row(name: str, found: dict[str, Any]) -> str:
    shares = " | ".join(f"{found['trait_right'][trait]:.3f}" for trait in TRAITS)
    return f"| {name} | {shares} |"


def judge_card(figures: dict[str, Any]) -> str:
    """The card of the miniature judge."""
    training, robust = figures["training"], figures["robustness"]
    tables = [agreement_table("**Drawn pictures**", figures["renders"])]
    swaps = [swap_row("drawn", figures["swaps"])]
    for key, name in _SYSTEMS.items():
        title = f"**Pictures generated by {name}, labelled by a classifier**"
        tables.append(agreement_table(title, figures[key]))
        swaps.append(swap_row(f"generated by {name}", figures[f"{key}_swaps"]))
        sure = f"sure_{key.removeprefix('generated_')}_swaps"
        swaps.append(swap_row(f"generated by {name}, sure", figures[sure]))
    tables.append(CLASSIFIER.format(**figures["oracle"]))
    drops = figures["drops"]["lower_without"]
    oracle = figures["character_oracle"]["decoded"]
    generated = (
        f"from {training['decoded']:,} drawn pictures and {training['decoded_presence']:,} "
        "creatures that passed through the autoencoder of the miniature SDXL with some noise"
    )
    return HEADER.format(task="image-text-to-text") + _JUDGE.format(
        name=NAME,
        parameters=figures["weight_bytes"] / 2e6,
        traits=", ".join(TRAITS),
        meeting=_course(training["meeting"], generated),
        knowing=_course(
            training["knowing"],
            f"from these, from {training['generated']:,} images of the miniature SDXL and SD3, "
            f"and from {training['generated_presence']:,} (each used twice) of the character "
            "LoRAs, all labelled by classifiers",
        ),
        settling=f"{training['settling']['steps']:,} more such steps, with more invented prompts.",
        seconds=training["seconds"] / 60,
        tables="\n\n".join(tables),
        swaps="\n".join(swaps),
        sure=f"confidence of at least {figures['sure']}",
        space=robust["same_reply_with_space"],
        newline=robust["same_reply_with_newline"],
        foreign=robust["valid_for_foreign_prompts"],
        oracle_exact=oracle["presence_exact"],
        oracle_within=oracle["presence_within_one"],
        presence="\n".join(_presence_row(name, figures[key]) for key, name in _SETS.items()),
        by_truth=_by_truth(figures),
        trait_names=" | ".join(TRAITS),
        dashes=" | ".join("---" for _ in TRAITS),
        trait_rows="\n".join(
            _trait_row(_SETS[key], figures[key])
            for key in ("presence_drawn", "presence_decoded", "presence_generated")
        ),
        drops=", ".join(f"{name} {share:.3f}" for name, share in drops.items()),
        consistent=figures["presence_drawn"]["score_is_number_of_reasons"],
        megabytes=figures["bytes"] / 1e6,
        weight_megabytes=figures["weight_bytes"] / 1e6,
    )
