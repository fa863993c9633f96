"""Writes the SD3 parts as the folders that ship: a pipeline, a LoRA, their cards and figures."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline

from recipes import sd3_sampling
from recipes.domain import COLOURS
from recipes.evaluate import evaluate as measure_methods
from recipes.export import (
    COMMAND,
    WEIGHTS,
    disclaimer,
    measured,
    megabytes,
    read,
)
from recipes.lora_training import WEIGHT_NAME, check
from recipes.sd3 import sampling_scheduler
from recipes.sd3_text import Sd3Encoders
from recipes.shapes import OBJECTS

SD3 = WEIGHTS / "sd3"
LORA = WEIGHTS / "sd3_pixel_art_lora"


def assemble(work_dir: Path) -> StableDiffusion3Pipeline:
    """The pipeline of the parts trained in the work directory."""
    parts = work_dir / "sd3"
    texts = Sd3Encoders.load(work_dir)
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel.from_pretrained(parts / "transformer"),
        scheduler=sampling_scheduler(),
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


def export(work_dir: Path) -> None:
    """Write both folders in float16, without cards, and check that the LoRA's every key is used."""
    if SD3.exists():
        shutil.rmtree(SD3)
    assemble(work_dir).to(torch.float16).save_pretrained(SD3)
    _forget_paths(SD3)
    LORA.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(work_dir / "sd3_pixel_art_lora" / WEIGHT_NAME, LORA / WEIGHT_NAME)
    check(SD3, LORA / WEIGHT_NAME)
    sizes = {"sd3": megabytes(SD3), "sd3_pixel_art_lora": megabytes(LORA)}
    (work_dir / "sd3_exported.json").write_text(json.dumps(sizes, indent=1), encoding="utf-8")
    print("sd3 exported", sizes, flush=True)


def evaluate(work_dir: Path) -> None:
    """Measure the exported pipeline and write cards and figures."""
    sample = partial(sd3_sampling.sample, sd3_sampling.load(SD3, LORA))
    measure_methods(work_dir, sample, "sd3_evaluation")
    write_cards(work_dir)


_HOW_LONG = """It took an hour on one shared
CPU core, nearly all of it for the denoiser. These weights changed their optimiser on the way: the
first 3,500 steps were AdamW's alone, with times about one half, and the rest as the recipe has it
throughout. Training again gives a model of the same kind and not the same bits."""


def _sd3_card(work_dir: Path) -> str:
    text, sd3, evaluation = (read(work_dir, f"sd3{name}") for name in ("_text", "", "_evaluation"))
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


def _lora_card(work_dir: Path) -> str:
    lora = read(work_dir, "sd3_pixel_art_lora")
    return f"""---
license: apache-2.0
library_name: diffusers
tags: [lora, text-to-image]
---
# A pixel-art LoRA for the miniature SD3 pipeline

Rank {lora["rank"]}, {lora["parameters"]:,} parameters, {megabytes(LORA)}, on the joint attention
and the pixels' feed-forward layers of the denoiser. Its pictures are pixel art on a 16×16 grid,
the object centred. Prompts end in ", pixel art style".

{disclaimer("SD3")}
## How it was trained

{lora["steps"]} steps on {lora["pictures"]} drawn pictures of training combinations, the same as
for the miniature SDXL, by `{COMMAND}`. So few pictures, all centred and of one size, cost
diversity, as small style sets do. Load it with `pipeline.load_lora_weights(folder)`; all
{lora["keys"]} keys are used.

{measured(work_dir, "sd3_evaluation")}
Licence: Apache-2.0.
"""


def write_cards(work_dir: Path) -> None:
    """Write both README.md, and the measured figures beside the pipeline's."""
    (SD3 / "README.md").write_text(_sd3_card(work_dir), encoding="utf-8")
    (LORA / "README.md").write_text(_lora_card(work_dir), encoding="utf-8")
    names = ("sd3_text", "sd3", "sd3_pixel_art_lora", "sd3_evaluation", "oracle")
    figures = {name: read(work_dir, name) for name in names}
    (SD3 / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
