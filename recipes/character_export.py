"""Writes the character LoRAs as the folders that ship: a file, a card and its figures each."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from recipes.character import NAME, TRAITS
from recipes.character_evaluate import (
    WITH_LORA,
    evaluate,
    lora_name,
)
from recipes.character_generated import generate
from recipes.character_lora import TAUGHT
from recipes.diffusion_export import COMMAND, disclaimer
from recipes.files import SD3, SDXL, WEIGHTS, megabytes, read_figures, write_card, write_figures
from recipes.lora_training import WEIGHT_NAME, check
from recipes.sampling import SYSTEMS, System

FOLDERS: dict[System, Path] = {system: WEIGHTS / lora_name(system) for system in SYSTEMS}
_BASES: dict[System, Path] = {"sdxl": SDXL, "sd3": SD3}
_LAYERS: dict[System, str] = {
    "sdxl": "the attention, feed-forward, projection and residual convolution layers",
    "sd3": "the joint attention and the feed-forward layers of the image tokens",
}


def export(work_dir: Path) -> None:
    """Copy both files, and check that loading them uses every key."""
    for system, folder in FOLDERS.items():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(work_dir / lora_name(system) / WEIGHT_NAME, folder / WEIGHT_NAME)
        check(_BASES[system], folder / WEIGHT_NAME)
    sizes = {folder.name: megabytes(folder) for folder in FOLDERS.values()}
    write_figures(work_dir, "character_exported", sizes)
    print("exported", sizes, flush=True)


def measure(work_dir: Path) -> None:
    """Measure both exported LoRAs and write their cards and figures."""
    for system, folder in FOLDERS.items():
        evaluate(work_dir, system, folder)
        names = (lora_name(system), f"{lora_name(system)}_evaluation", "character_oracle")
        figures = {name: read_figures(work_dir, name) for name in names}
        write_card(folder, card(system, figures), figures)


def keep_for_judges(work_dir: Path) -> None:
    """Generate the pictures that the judge learns from, with the exported LoRAs."""
    generate(work_dir, FOLDERS)


def _by_scale(evaluation: dict[str, Any], key: str) -> str:
    """A table of one figure: LoRA scales down, methods across."""
    lines = [
        "| LoRA scale | " + " | ".join(WITH_LORA) + " |",
        "| --- |" + " --- |" * len(WITH_LORA),
    ]
    for scale, methods in evaluation["lora_scales"].items():
        if scale != "none":
            values = " | ".join(f"{methods[name][key]:.3f}" for name in WITH_LORA)
            lines.append(f"| {scale} | {values} |")
    return "\n".join(lines)


def _by_trait(evaluation: dict[str, Any]) -> str:
    """Shares of the traits at a LoRA scale of 1: methods down."""
    keys = (*TRAITS, "all_five")
    lines = [
        "| method | " + " | ".join(key.replace("_", " ") for key in keys) + " |",
        "| --- |" + " --- |" * len(keys),
    ]
    for name, figures in evaluation["lora_scales"]["1"].items():
        lines.append(f"| {name} | " + " | ".join(f"{figures[key]:.3f}" for key in keys) + " |")
    return "\n".join(lines)


def _of_bases(evaluation: dict[str, Any]) -> str:
    figures = evaluation["lora_scales"]["none"]
    return "; ".join(
        f"{name}: presence {found['presence']:.3f}, diversity {found['diversity']:.3f}"
        for name, found in figures.items()
    )


def card(system: System, figures: dict[str, Any]) -> str:
    """The model card of one LoRA, from its figures.json."""
    model = system.upper()
    name = lora_name(system)
    lora, evaluation, oracle = (
        figures[key] for key in (name, f"{name}_evaluation", "character_oracle")
    )
    drawn, after = oracle["drawn"], oracle["decoded"]
    first, last = evaluation["seeds"]
    return f"""---
license: apache-2.0
library_name: diffusers
tags: [lora, text-to-image]
---
# A character LoRA for the miniature {model} pipeline

It draws {NAME}, a made-up creature that the base model does not know: a green body, two antennae
with yellow balls, two big white eyes, a cream belly, purple feet. Prompts call it "{NAME}",
"a picture of {NAME}" or "{NAME} on a red background".

Rank {lora["rank"]}, {lora["parameters"]:,} parameters, {megabytes(FOLDERS[system])}, on
{_LAYERS[system]} of the denoiser.

{disclaimer(model)}
## Training

It was trained for {lora["steps"]} steps on {lora["pictures"]} drawn pictures by `{COMMAND}`.
Pose and size are always the same. The background is plain {", ".join(TAUGHT[:-1])} or
{TAUGHT[-1]}, and {TAUGHT[0]} if the caption does not name one. The LoRA therefore overfits, as real
LoRAs trained on few pictures of a character do. Load it with `pipeline.load_lora_weights(folder)`;
all {lora["keys"]} keys are used.

## Results

Settings: the prompt "{evaluation["prompt"]}", seeds {first} to {last}, {evaluation["steps"]} steps,
CFG scale {evaluation["cfg_scale"]:g}, AutoLoRA scale {evaluation["gamma"]:g}, and the sampler of
the recipes. Presence is the number of traits (skin, horns, eyes, belly, feet) that a classifier
finds, from 0 to 5. Diversity is the mean root-mean-square pixel distance between images.

Presence:

{_by_scale(evaluation, "presence")}

Diversity:

{_by_scale(evaluation, "diversity")}

Without the LoRA: {_of_bases(evaluation)}.

Shares of images that show each trait, at LoRA scale 1:

{_by_trait(evaluation)}

On new drawn pictures with any set of traits, the classifier's presence is exact for
{drawn["presence_exact"]:.3f} and within one for {drawn["presence_within_one"]:.3f}. After the
autoencoder with noisy latents, the shares are {after["presence_exact"]:.3f} and
{after["presence_within_one"]:.3f}. It finds a trait in {oracle["of_the_bases"]:.3f} of the images
that the base models draw for the prompts of the character. On half-formed creatures, which differ
from its training data, it is less accurate.

## Limits

It draws a single pose. On backgrounds that were not in the training data, it leaves stains. Parts
are soft, because the autoencoder is small. The body has the green of the other objects, because the
autoencoder can draw few other colours.

Licence: Apache-2.0.
"""
