"""The model card of the miniature judge with its two rubrics, filled from measured figures."""

from __future__ import annotations

from typing import Any

from recipes.character import NAME, TRAITS
from recipes.vision_cards import (
    HEADER,
    ORACLE,
    agreement_table,
    swap_row,
)

_JUDGE = """# Miniature vision-language judge

A `LlavaForConditionalGeneration` of {parameters:.2f} M parameters (CLIP vision tower and Llama, 128
wide), trained from scratch by `recipes`. It answers two questions about
64 × 64 pictures: the AutoLoRA paper's rubric A.2 word for word, about one object on a background,
with `{{"prompt_correspondence": 4, "style_adherence": 5}}`; and a rubric in the form of the paper's
A.1 (`prompts/rubrics/character_miniature.yaml`), about a creature of five traits that is called
{name}, with `{{"score": 3, "reason": ["skin", "eyes", "belly"]}}`. It stands in for
`meta-llama/Llama-3.2-11B-Vision-Instruct` where there is no GPU and no model hub. **Its numbers say
nothing about Llama, nor about any judge of real pictures.**

The weights carry the names of the published LLaVA checkpoints. Asked about things outside its
little world it is meant to reply in the right form all the same; what it then says means nothing.

## Truth
- Prompt correspondence: 5, 3, 1 or 0 where three, two, one or none of object, colour and
  background are as the prompt says. A mangled object counts as none.
- Style adherence: 5 for crisp pixel art on a 16 × 16 grid, 4 to 2 for pixel art that is blurred, on
  too fine a grid, noisy or shaded, to a rising degree; 1 for a picture that is not pixel art.
- Presence of {name}: how many of its traits ({traits}) the picture shows. A trait counts if it is
  whole and of its colour, and on a body of the creature's shape: a green circle has presence 0. The
  reasons are the traits that are there, in this order, or "no {name} character".

## Training
The vision tower first classifies object, colour, background and style; then the whole model
learns to reply about prompts, with heads, used in training only, that say of each of the prompt's
words what the picture shows in its place and whether it fits. That took 50 minutes on one CPU core
and gave the weights that are called "before" here. These went on from them with both questions, and
with heads that name the traits that are there:

- {meeting}
- {knowing}
- {settling}

{seconds:.0f} minutes on one CPU core, of which a part was shared with other work. The tokens of the
second rubric were added behind those of the first, whose numbers and texts are as they were.

## Measured: prompts and style
On scenes (object, colour, background) and seeds that training never showed, greedy, weights cast
to float16 and run in float32.

{tables}

A right prompt with one word replaced gets a lower prompt score in:

| | object | colour | background | all |
| --- | --- | --- | --- | --- |
{swaps}

"sure": only pictures of which the oracle is sure ({sure}); on the others the
right prompt itself is in doubt.

Beside the weights before, on the same pictures:

{before}

White space: the reply is the same with a leading space in {space:.3f}, with a trailing newline in
{newline:.3f} of cases. Prompts from outside its world get valid JSON in {foreign:.3f}.

## Measured: presence of {name}
Drawn pictures are of sets of traits on backgrounds on which training never showed them, soft and
half-formed creatures among them; generated ones are of seeds that training never showed, by the
character LoRAs of both base models at all scales. Labels of generated pictures are the character's
oracle's, a small network of its own, which on decoded pictures counts exactly in
{oracle_exact:.3f} and within one in {oracle_within:.3f}.

| pictures | count | invalid | exact | within one | reasons right |
| --- | --- | --- | --- | --- | --- |
{presence}

| truth | drawn: exact | within one | mean | generated: count | exact | within one | mean |
| --- | --- | --- | --- | --- | --- | --- | --- |
{by_truth}

Whether a trait is there, it says rightly in:

| | {trait_names} |
| --- | {dashes} |
{trait_rows}

Drawn again without one trait, a whole creature gets a lower score in:
{drops}.
The score is the number of the traits given as reasons in {consistent:.3f} of the replies about
drawn pictures.

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
        f"{recipe['steps']:,} steps of {reading['images_per_batch']} pictures with "
        f"{reading['questions_per_image']} questions about prompts each, and of "
        f"{recipe['creatures_per_batch']} creatures and {others} pictures without one with the "
        f"question about {NAME}: {reading['given_share']:.0%} and {recipe['given_share']:.0%} of "
        f"them {of_what}, the others newly drawn."
    )


def _compared(figures: dict[str, Any]) -> str:
    """The main figures, before and now."""
    before = figures["before"]
    lines = ["| | before | now |", "| --- | --- | --- |"]
    for key, name in (("renders", "drawn"), *_SYSTEMS.items()):
        for score in ("prompt", "style"):
            for measure in ("exact", "within_one"):
                old, new = (f[key][score][measure] for f in (before, figures))
                lines.append(
                    f"| {score} {measure.replace('_', ' ')}, {name} | {old:.3f} | {new:.3f} |"
                )
    swapped = {"swaps": "drawn"}
    for system in ("sdxl", "sd3"):
        swapped[f"generated_{system}_swaps"] = _SYSTEMS[f"generated_{system}"]
        swapped[f"sure_{system}_swaps"] = f"{_SYSTEMS[f'generated_{system}']}, sure"
    for key, name in swapped.items():
        for word in ("object", "any"):
            old, new = before[key][word], figures[key][word]
            lines.append(f"| {word} word replaced, {name} | {old:.3f} | {new:.3f} |")
    return "\n".join(lines)


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
        title = f"**Pictures generated by {name}, labelled by the oracle classifier**"
        tables.append(agreement_table(title, figures[key]))
        swaps.append(swap_row(f"generated by {name}", figures[f"{key}_swaps"]))
        sure = f"sure_{key.removeprefix('generated_')}_swaps"
        swaps.append(swap_row(f"generated by {name}, sure", figures[sure]))
    tables.append(ORACLE.format(**figures["oracle"]))
    drops = figures["drops"]["lower_without"]
    oracle = figures["character_oracle"]["decoded"]
    generated = (
        f"of {training['decoded']:,} drawn pictures and {training['decoded_presence']:,} "
        "creatures that went through the miniature SDXL's autoencoder with some noise"
    )
    return HEADER.format(task="image-text-to-text") + _JUDGE.format(
        name=NAME,
        parameters=figures["weight_bytes"] / 2e6,
        traits=", ".join(TRAITS),
        meeting=_course(training["meeting"], generated),
        knowing=_course(
            training["knowing"],
            f"of these or of {training['generated']:,} pictures that the miniature SDXL and SD3 "
            f"generated and {training['generated_presence']:,} (each counted twice) that they "
            "generated with the character LoRAs, with the oracles' readings as truth",
        ),
        settling=f"{training['settling']['steps']:,} more of these, with more made-up prompts.",
        seconds=training["seconds"] / 60,
        tables="\n\n".join(tables),
        swaps="\n".join(swaps),
        sure=f"confidence at least {figures['sure']}",
        before=_compared(figures),
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
