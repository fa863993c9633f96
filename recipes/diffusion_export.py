"""Write the trained pipelines and their pixel-art LoRAs to the folders that ship, with cards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from recipes import sd3, unet
from recipes.domain import BACKGROUNDS, COLOURS
from recipes.evaluate import evaluate
from recipes.files import (
    SD3,
    SD3_LORA,
    SDXL,
    SDXL_LORA,
    megabytes,
    read_figures,
    write_card,
    write_figures,
)
from recipes.lora_training import WEIGHT_NAME, check
from recipes.sampling import Sampler
from recipes.sd3_text import Sd3Encoders
from recipes.shapes import OBJECTS
from recipes.text import TextEncoders

COMMAND = "python -m recipes.train"
Figures = Mapping[str, Any]  # what each stage measured, as in figures.json


def assemble_sdxl(work_dir: Path) -> StableDiffusionXLPipeline:
    """The pipeline of the parts trained in the work directory."""
    parts = work_dir / "sdxl"
    texts = TextEncoders.load(parts)
    return StableDiffusionXLPipeline(
        vae=AutoencoderKL.from_pretrained(parts / "vae"),
        text_encoder=texts.first,
        text_encoder_2=texts.second,
        tokenizer=texts.tokenizer,
        tokenizer_2=texts.tokenizer,
        unet=UNet2DConditionModel.from_pretrained(parts / "unet"),
        scheduler=unet.sampling_scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def assemble_sd3(work_dir: Path) -> StableDiffusion3Pipeline:
    """The pipeline of the parts trained in the work directory."""
    parts = work_dir / "sd3"
    texts = Sd3Encoders.load(work_dir)
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel.from_pretrained(parts / "transformer"),
        scheduler=sd3.sampling_scheduler(),
        vae=AutoencoderKL.from_pretrained(parts / "vae"),
        text_encoder=texts.first,
        tokenizer=texts.tokenizer,
        text_encoder_2=texts.second,
        tokenizer_2=texts.tokenizer,
        text_encoder_3=texts.t5,
        tokenizer_3=texts.t5_tokenizer,
    )


def _forget_paths(folder: Path) -> None:
    """Remove the paths of this machine from the configurations."""
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _export(
    work_dir: Path, pipeline: DiffusionPipeline, folder: Path, lora: Path, name: str
) -> None:
    """Write a pipeline in float16 and its LoRA, without cards; check that every key is used."""
    if folder.exists():
        shutil.rmtree(folder)
    pipeline.to(torch.float16).save_pretrained(folder)
    _forget_paths(folder)
    lora.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(work_dir / lora.name / WEIGHT_NAME, lora / WEIGHT_NAME)
    check(folder, lora / WEIGHT_NAME)
    sizes = {path.name: megabytes(path) for path in (folder, lora)}
    write_figures(work_dir, name, sizes)
    print(name, sizes, flush=True)


def export_sdxl(work_dir: Path) -> None:
    """Write the SDXL miniature and its LoRA; load them with torch_dtype=torch.float32."""
    _export(work_dir, assemble_sdxl(work_dir), SDXL, SDXL_LORA, "exported")


def export_sd3(work_dir: Path) -> None:
    """Write the SD3 miniature and its LoRA; load them with torch_dtype=torch.float32."""
    _export(work_dir, assemble_sd3(work_dir), SD3, SD3_LORA, "sd3_exported")


def evaluate_sdxl(work_dir: Path) -> None:
    """Measure the exported SDXL and write cards and figures."""
    evaluate(work_dir, Sampler("sdxl", SDXL_LORA), "evaluation")
    names = ("text", "vae", "unet", "unet_tuned", "pixel_art_lora", "evaluation", "oracle")
    figures = {name: read_figures(work_dir, name) for name in names}
    write_card(SDXL, sdxl_card(figures), figures)
    write_card(SDXL_LORA, sdxl_lora_card(figures))


def evaluate_sd3(work_dir: Path) -> None:
    """Measure the exported SD3 and write cards and figures."""
    evaluate(work_dir, Sampler("sd3", SD3_LORA), "sd3_evaluation")
    names = ("sd3_text", "sd3", "sd3_pixel_art_lora", "sd3_evaluation", "oracle")
    figures = {name: read_figures(work_dir, name) for name in names}
    write_card(SD3, sd3_card(figures), figures)
    write_card(SD3_LORA, sd3_lora_card(figures))


def _table(evaluation: dict[str, Any]) -> str:
    keys = ("object", "colour", "background", "all_three", "style_grade", "diversity")
    lines = [
        "| method | " + " | ".join(key.replace("_", " ") for key in keys) + " |",
        "| --- |" + " --- |" * len(keys),
    ]
    for name, figures in evaluation["methods"].items():
        values = " | ".join(f"{figures[key]:.3f}" for key in keys)
        lines.append(f"| {name} | {values} |")
    return "\n".join(lines)


def measured(figures: Figures, name: str) -> str:
    """The section of a card that says what an evaluation found."""
    evaluation, oracle = figures[name], figures["oracle"]
    return f"""## Results

Prompts: {evaluation["scenes"]} combinations of object, colour and background that are not in the
training data, with the suffix ", pixel art style" and {len(evaluation["seeds"])} seeds each.
Settings: {evaluation["steps"]} steps, CFG scale {evaluation["cfg_scale"]:g}, AutoLoRA scale
{evaluation["gamma"]:g}, LoRA scale 1. A classifier trained on drawn pictures reads the images.
The columns "object" to "all three" are shares of correct images. The style grade is 1 (free
drawing) to 5 (crisp pixel art). Diversity is the mean root-mean-square pixel distance between the
images of one prompt.

{_table(evaluation)}

Accuracy of the classifier on drawn pictures of such combinations (in brackets, on pixel art):
object {oracle["object_free"]:.3f} ({oracle["object_pixel_art"]:.3f}), colour
{oracle["colour_free"]:.3f} ({oracle["colour_pixel_art"]:.3f}), background
{oracle["background_free"]:.3f} ({oracle["background_pixel_art"]:.3f}). The style grade is exact
for {oracle["grade_exact"]:.3f} and within one for {oracle["grade_within_one"]:.3f}. Mangled objects
are recognized as such in {oracle["mangled_read_as_none"]:.3f} of cases.
"""


def disclaimer(model: str) -> str:
    """The first paragraph of each card: the numbers say nothing about the large model."""
    return f"""\
It says nothing about {model}: its numbers do not show how {model}, its LoRAs or guidance methods
behave. It exists so that all of autolora-eval runs on a laptop, through the code for the large
models and without a download.
"""


def sdxl_card(figures: Figures) -> str:
    """The card of the SDXL miniature."""
    cfg_scale = figures["evaluation"]["cfg_scale"]
    vae, text, unet, tuned = (figures[name] for name in ("vae", "text", "unet", "unet_tuned"))
    return f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# A miniature SDXL pipeline

A `StableDiffusionXLPipeline` of {megabytes(SDXL)} that draws 64 × 64 images of one coloured object
on a plain background. Objects: {", ".join(OBJECTS)}.
Colours and backgrounds:
{", ".join(COLOURS if COLOURS == BACKGROUNDS else (*COLOURS, *BACKGROUNDS))}. Example of a prompt:
"a red star on a blue background".

{disclaimer("SDXL")}
## Use

```python
pipeline = StableDiffusionXLPipeline.from_pretrained(folder, torch_dtype=torch.float32)
pipeline("a red star on a blue background", negative_prompt="", height=64, width=64,
         guidance_scale={cfg_scale:g}, num_inference_steps=20)
```

## Training

It was trained from scratch on drawn pictures by `{COMMAND}`, in two hours on one
shared CPU core. The training was interrupted twice, so training again gives slightly
different weights.

| part | parameters | steps | notes |
| --- | --- | --- | --- |
| text encoders (two) | {text["parameters"]:,} | {text["steps"]} | attributes, then frozen |
| autoencoder | {vae["parameters"]:,} | {vae["steps"]} | held-out PSNR \
{vae["held_out_psnr_free"]:.1f} dB, pixel art {vae["held_out_psnr_pixel_art"]:.1f} dB |
| denoiser | {unet["parameters"]:,} | {unet["steps"]:,} + {tuned["steps"]:,} | \
{unet["samples"] + tuned["samples"]:,} samples, v-prediction, averaged weights |

5% of the captions were replaced by the empty prompt, and 5% by zero embeddings. 20% named a style
that the picture does not have. In the last {tuned["steps"]:,} steps of the denoiser,
{" and ".join(f"{name}s" for name in tuned["weak"])} were more frequent: they were drawn worst.

{measured(figures, "evaluation")}
## Limits

It knows only the words above. Objects are sometimes misshapen. Images are soft, because the
autoencoder is small. It was trained only with the time ids (64, 64, 0, 0, 64, 64).

Licence: Apache-2.0.
"""


def sd3_card(figures: Figures) -> str:
    """The card of the SD3 miniature."""
    text, sd3, evaluation = (figures[f"sd3{name}"] for name in ("_text", "", "_evaluation"))
    return f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# A miniature SD3 pipeline

A `StableDiffusion3Pipeline` of {megabytes(SD3)} that draws 64 × 64 images of one coloured object on
a plain background. Objects: {", ".join(OBJECTS)}.
Colours and backgrounds: {", ".join(COLOURS)}.
Example of a prompt: "a red star on a blue background".

{disclaimer("SD3")}
## Use

```python
pipeline = StableDiffusion3Pipeline.from_pretrained(folder, torch_dtype=torch.float32)
pipeline("a red star on a blue background", negative_prompt="", height=64, width=64,
         guidance_scale={evaluation["cfg_scale"]:g}, num_inference_steps={evaluation["steps"]})
```

## Training

It was trained from scratch on drawn pictures by `{COMMAND}`, in an hour on one
shared CPU core. The first 3,500 steps of the denoiser used AdamW alone and times around one half.
The recipe now trains all steps like the later ones, so training again gives different weights.

| part | parameters | steps | notes |
| --- | --- | --- | --- |
| text encoders (two CLIP) | 297,000 | none | those of the miniature SDXL, frozen; the first one's \
projection is the identity |
| text encoder (T5) | {text["parameters"]:,} | {text["steps"]} | attributes, then frozen; all \
correct for {text["held_out_caption_accuracy"]:.3f} of captions not in the training data |
| autoencoder | 410,000 | none | the miniature SDXL's, with a shift factor |
| denoiser (MMDiT) | {sd3["parameters"]:,} | {sd3["steps"]:,} | {sd3["samples"]:,} samples, \
rectified flow at logit-normal times, averaged weights |

10% of the captions were replaced by the empty prompt. This is the null prompt of classifier-free
guidance. It must be passed explicitly: without it, SD3 runs without guidance. 20% of the captions
named a style that the picture does not have.

The pipeline pads T5's prompt to 256 tokens without a mask. This T5 distinguishes positions only up
to two tokens away, so nearly all padding tokens have the same embedding. Training used one of them
with the weight of all, which gives the same predictions in a third of the time.

{measured(figures, "sd3_evaluation")}
## Limits

It knows only the words above, in captions of up to 13 words. Objects are sometimes misshapen.
Images are soft, because the autoencoder is small. Unlike SD3.5, it has neither query and key norms
nor a second attention. It has 4 latent channels instead of SD3's 16.

Licence: Apache-2.0.
"""


def sdxl_lora_card(figures: Figures) -> str:
    """The card of the pixel-art LoRA for the SDXL miniature."""
    layers = "the attention,\nfeed-forward, projection and residual convolution layers"
    return _lora_card(figures, "SDXL", SDXL_LORA, layers, "evaluation")


def sd3_lora_card(figures: Figures) -> str:
    """The card of the pixel-art LoRA for the SD3 miniature."""
    layers = "the joint attention\nand the feed-forward layers of the image tokens"
    return _lora_card(figures, "SD3", SD3_LORA, layers, "sd3_evaluation")


def _lora_card(figures: Figures, model: str, folder: Path, layers: str, evaluation: str) -> str:
    lora = figures[folder.name]
    return f"""---
license: apache-2.0
library_name: diffusers
tags: [lora, text-to-image]
---
# A pixel-art LoRA for the miniature {model} pipeline

Rank {lora["rank"]}, {lora["parameters"]:,} parameters, {megabytes(folder)}, on {layers}
of the denoiser. Its images are pixel art on a 16 × 16 grid with a centred object. Prompts end in
", pixel art style".

{disclaimer(model)}
## Training

It was trained for {lora["steps"]} steps on {lora["pictures"]} drawn pictures by
`{COMMAND}`. So few pictures, all centred and of one size, reduce diversity, as small
training sets of real style LoRAs do. Load it with `pipeline.load_lora_weights(folder)`;
all {lora["keys"]} keys are used.

{measured(figures, evaluation)}
Licence: Apache-2.0.
"""
