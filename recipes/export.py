"""Writes the trained parts as the folders that ship: a pipeline, a LoRA, their model cards."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel

from recipes import sampling
from recipes.domain import BACKGROUNDS, COLOURS
from recipes.evaluate import evaluate as measure_methods
from recipes.lora_training import WEIGHT_NAME, check
from recipes.shapes import OBJECTS
from recipes.text import TextEncoders
from recipes.unet import sampling_scheduler

WEIGHTS = Path(__file__).resolve().parents[1] / "autolora_eval" / "shipped" / "miniature"
SDXL = WEIGHTS / "sdxl"
LORA = WEIGHTS / "pixel_art_lora"
COMMAND = "python -m recipes.train"


def assemble(work_dir: Path) -> StableDiffusionXLPipeline:
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
        scheduler=sampling_scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def export_sdxl(work_dir: Path) -> None:
    """Write weights/sdxl: float16 weights, to be loaded with torch_dtype=torch.float32."""
    if SDXL.exists():
        shutil.rmtree(SDXL)
    assemble(work_dir).to(torch.float16).save_pretrained(SDXL)


def export_lora(work_dir: Path) -> None:
    """Write weights/pixel_art_lora, and check that loading it uses every key."""
    LORA.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(work_dir / "pixel_art_lora" / WEIGHT_NAME, LORA / WEIGHT_NAME)
    check(SDXL, LORA / WEIGHT_NAME)


def export(work_dir: Path) -> None:
    """Write both folders, without cards."""
    export_sdxl(work_dir)
    export_lora(work_dir)
    sizes = {"sdxl": megabytes(SDXL), "pixel_art_lora": megabytes(LORA)}
    (work_dir / "exported.json").write_text(json.dumps(sizes, indent=1), encoding="utf-8")
    print("exported", sizes, flush=True)


def evaluate(work_dir: Path) -> None:
    """Measure the exported pipeline and write the cards."""
    sample = partial(sampling.sample, sampling.load(SDXL, LORA))
    measure_methods(work_dir, sample, "evaluation")
    write_cards(work_dir)


def megabytes(folder: Path) -> str:
    """The size of a folder's weights, to be read."""
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    return f"{size / 1e6:.1f} MB"


def read(work_dir: Path, name: str) -> dict[str, Any]:
    """The figures that a stage left."""
    figures: dict[str, Any] = json.loads((work_dir / f"{name}.json").read_text(encoding="utf-8"))
    return figures


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


def measured(work_dir: Path, name: str = "evaluation") -> str:
    """The section of a card that says what an evaluation found."""
    evaluation, oracle = read(work_dir, name), read(work_dir, "oracle")
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
    vae, text, unet, tuned = (read(work_dir, n) for n in ("vae", "text", "unet", "unet_tuned"))
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
         guidance_scale={read(work_dir, "evaluation")["cfg_scale"]:g}, num_inference_steps=20)
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

{measured(work_dir)}
## Limits

It knows the words above and nothing else. Objects are sometimes misshapen. Pictures are soft,
as the autoencoder is small. It was trained with time ids (64, 64, 0, 0, 64, 64) only.

Licence: Apache-2.0.
"""


def _lora_card(work_dir: Path) -> str:
    lora = read(work_dir, "pixel_art_lora")
    return f"""---
license: apache-2.0
library_name: diffusers
tags: [lora, text-to-image]
---
# A pixel-art LoRA for the miniature SDXL pipeline

Rank {lora["rank"]}, {lora["parameters"]:,} parameters, {megabytes(LORA)}, on attention,
feed-forward, projection and residual convolution layers of the denoiser. Its pictures are pixel
art on a 16×16 grid, the object centred. Prompts end in ", pixel art style".

{disclaimer("SDXL")}
## How it was trained

{lora["steps"]} steps on {lora["pictures"]} drawn pictures of training combinations, by
`{COMMAND}`. So few pictures, all centred and of one size, cost diversity, as small style sets do.
Load it with `pipeline.load_lora_weights(folder)`; all {lora["keys"]} keys are used.

{measured(work_dir)}
Licence: Apache-2.0.
"""


def write_cards(work_dir: Path) -> None:
    """Write both README.md, and the measured figures beside the pipeline's."""
    (SDXL / "README.md").write_text(_sdxl_card(work_dir), encoding="utf-8")
    (LORA / "README.md").write_text(_lora_card(work_dir), encoding="utf-8")
    names = ("text", "vae", "unet", "unet_tuned", "pixel_art_lora", "evaluation", "oracle")
    figures = {name: read(work_dir, name) for name in names}
    (SDXL / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
