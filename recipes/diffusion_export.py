"""Write the trained pipelines and their pixel-art LoRAs to the folders that ship, with cards."""

from __future__ import annotations

import json
import shutil
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
    """Drop from the configurations where on this machine the parts were loaded from."""
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
    write_card(SDXL, _sdxl_card(work_dir), {name: read_figures(work_dir, name) for name in names})
    write_card(SDXL_LORA, _sdxl_lora_card(work_dir))


def evaluate_sd3(work_dir: Path) -> None:
    """Measure the exported SD3 and write cards and figures."""
    evaluate(work_dir, Sampler("sd3", SD3_LORA), "sd3_evaluation")
    names = ("sd3_text", "sd3", "sd3_pixel_art_lora", "sd3_evaluation", "oracle")
    write_card(SD3, _sd3_card(work_dir), {name: read_figures(work_dir, name) for name in names})
    write_card(SD3_LORA, _sd3_lora_card(work_dir))


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


def measured(work_dir: Path, name: str) -> str:
    """The section of a card that says what an evaluation found."""
    evaluation, oracle = read_figures(work_dir, name), read_figures(work_dir, "oracle")
    return f"""## Measured

{evaluation["scenes"]} held-out combinations of object, colour and background, which no training
picture showed, {len(evaluation["seeds"])} seeds each, {evaluation["steps"]} steps, prompts with
the suffix ", pixel art style", CFG scale {evaluation["cfg_scale"]:g}, AutoLoRA scale
{evaluation["gamma"]:g}, LoRA scale 1. Read by an oracle network that was trained on drawn
pictures. Shares of right readings; style grade 1 (free drawing) to 5 (crisp pixel art); diversity
is the mean root-mean-square pixel distance between pictures of one prompt.

{_table(evaluation)}

The oracle itself, on drawn pictures of held-out combinations: object
{oracle["object_free"]:.3f} (pixel art {oracle["object_pixel_art"]:.3f}), colour
{oracle["colour_free"]:.3f} ({oracle["colour_pixel_art"]:.3f}), background
{oracle["background_free"]:.3f} ({oracle["background_pixel_art"]:.3f}), style grade exact
{oracle["grade_exact"]:.3f} and within one {oracle["grade_within_one"]:.3f}, mangled objects read
as none {oracle["mangled_read_as_none"]:.3f}.
"""


def disclaimer(model: str) -> str:
    """What every card says first: nothing follows for the large model."""
    return f"""\
It says nothing about {model}. No number made with this model says how {model}, its LoRAs,
or a guidance method on them behave; the miniature exists so that the whole program runs on a
laptop, on real models of the real classes, without a download.
"""


def _sdxl_card(work_dir: Path) -> str:
    cfg_scale = read_figures(work_dir, "evaluation")["cfg_scale"]
    vae, text, unet, tuned = (
        read_figures(work_dir, n) for n in ("vae", "text", "unet", "unet_tuned")
    )
    return f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# A miniature SDXL pipeline

A `StableDiffusionXLPipeline` of {megabytes(SDXL)} that draws 64×64 pictures of one object of one
colour on one background. Objects: {", ".join(OBJECTS)}. Colours and backgrounds:
{", ".join(COLOURS if COLOURS == BACKGROUNDS else (*COLOURS, *BACKGROUNDS))}. A prompt reads
"a red star on a blue background".

{disclaimer("SDXL")}
## Use

```python
pipeline = StableDiffusionXLPipeline.from_pretrained(folder, torch_dtype=torch.float32)
pipeline("a red star on a blue background", negative_prompt="", height=64, width=64,
         guidance_scale={cfg_scale:g}, num_inference_steps=20)
```

## How it was trained

From scratch, on procedurally drawn pictures, by `{COMMAND}`, in two hours on one shared
CPU core. These weights were interrupted, at step 2,500 of the denoiser and in its later steps:
training again gives a model of the same kind and not the same bits.

| part | parameters | steps | notes |
| --- | --- | --- | --- |
| text encoders (two) | {text["parameters"]:,} | {text["steps"]} | attributes, then frozen |
| autoencoder | {vae["parameters"]:,} | {vae["steps"]} | held-out PSNR \
{vae["held_out_psnr_free"]:.1f} dB, pixel art {vae["held_out_psnr_pixel_art"]:.1f} dB |
| denoiser | {unet["parameters"]:,} | {unet["steps"]:,} + {tuned["steps"]:,} | \
{unet["samples"] + tuned["samples"]:,} samples, v-prediction, averaged weights |

A tenth of the captions was dropped, half of them for the empty prompt and half for zero
embeddings. A fifth carried a style's name that the picture does not show. In the
denoiser's later steps {" and ".join(f"{name}s" for name in tuned["weak"])} came more often: they
were the weakest.

{measured(work_dir, "evaluation")}
## Limits

It knows the words above and nothing else. Objects are sometimes misshapen. Pictures are soft,
as the autoencoder is small. It was trained with time ids (64, 64, 0, 0, 64, 64) only.

Licence: Apache-2.0.
"""


_HOW_LONG = """It took an hour on one shared
CPU core, nearly all of it for the denoiser. These weights changed their optimizer on the way: the
first 3,500 steps were AdamW's alone, with times about one half, and the rest as the recipe has it
throughout. Training again gives a model of the same kind and not the same bits."""


def _sd3_card(work_dir: Path) -> str:
    text, sd3, evaluation = (
        read_figures(work_dir, f"sd3{name}") for name in ("_text", "", "_evaluation")
    )
    return f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# A miniature SD3 pipeline

A `StableDiffusion3Pipeline` of {megabytes(SD3)} that draws 64×64 pictures of one object of one
colour on one background. Objects: {", ".join(OBJECTS)}. Colours and backgrounds:
{", ".join(COLOURS)}. A prompt reads "a red star on a blue background".

{disclaimer("SD3")}
## Use

```python
pipeline = StableDiffusion3Pipeline.from_pretrained(folder, torch_dtype=torch.float32)
pipeline("a red star on a blue background", negative_prompt="", height=64, width=64,
         guidance_scale={evaluation["cfg_scale"]:g}, num_inference_steps={evaluation["steps"]})
```

## How it was trained

From scratch, on procedurally drawn pictures, by `{COMMAND}`. {_HOW_LONG}

| part | parameters | steps | notes |
| --- | --- | --- | --- |
| text encoders (two CLIP) | 297,000 | none | those of the miniature SDXL, frozen; the first one's \
projection is the identity |
| text encoder (T5) | {text["parameters"]:,} | {text["steps"]} | attributes, then frozen; tells \
all of them for {text["held_out_caption_accuracy"]:.3f} of held-out captions |
| autoencoder | 410,000 | none | the miniature SDXL's, with a shift factor |
| denoiser (MMDiT) | {sd3["parameters"]:,} | {sd3["steps"]:,} | {sd3["samples"]:,} samples, \
rectified flow at logit-normal times, averaged weights |

A tenth of the captions was dropped for the empty prompt; that is the null prompt of
classifier-free guidance, and it must be passed: SD3 runs without any guidance when it is left out.
A fifth of the captions carried a style's name that the picture does not show.

The pipeline pads the T5's prompt to 256 tokens and masks none. This T5 sees positions only up to
two words away, so that nearly all paddings come out equal; training attended to one of them,
counted for all, which gives the same predictions in a third of the time.

{measured(work_dir, "sd3_evaluation")}
## Limits

It knows the words above and nothing else, in captions of up to 13 words. Objects are sometimes
misshapen. Pictures are soft, as the autoencoder is small. It has no norms on queries and keys and
no second attention (SD3.5 has both), and 4 latent channels where SD3 has 16.

Licence: Apache-2.0.
"""


def _sdxl_lora_card(work_dir: Path) -> str:
    layers = "attention,\nfeed-forward, projection and residual convolution layers of the denoiser."
    return _lora_card(work_dir, "SDXL", SDXL_LORA, layers, "training combinations,", "evaluation")


def _sd3_lora_card(work_dir: Path) -> str:
    layers = "the joint attention\nand the pixels' feed-forward layers of the denoiser."
    pictures = "training combinations, the same as\nfor the miniature SDXL,"
    return _lora_card(work_dir, "SD3", SD3_LORA, layers, pictures, "sd3_evaluation")


def _lora_card(
    work_dir: Path, model: str, folder: Path, layers: str, pictures: str, evaluation: str
) -> str:
    lora = read_figures(work_dir, folder.name)
    return f"""---
license: apache-2.0
library_name: diffusers
tags: [lora, text-to-image]
---
# A pixel-art LoRA for the miniature {model} pipeline

Rank {lora["rank"]}, {lora["parameters"]:,} parameters, {megabytes(folder)}, on {layers} Its
pictures are pixel art on a 16×16 grid, the object centred. Prompts end in ", pixel art style".

{disclaimer(model)}
## How it was trained

{lora["steps"]} steps on {lora["pictures"]} drawn pictures of {pictures} by `{COMMAND}`. So few
pictures, all centred and of one size, cost diversity, as small style sets do. Load it with
`pipeline.load_lora_weights(folder)`; all {lora["keys"]} keys are used.

{measured(work_dir, evaluation)}
Licence: Apache-2.0.
"""
