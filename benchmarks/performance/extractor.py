"""The feature stage, and a plain loop over the same files, model, processor and batches.

The stage also hashes every file before it trusts it, and writes the features. The models are
DINOv2 at ViT-S/14's size with random weights, and the miniature, whose passes cost next to nothing.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import yaml

import autolora_eval
from autolora_eval._files import Json
from benchmarks.performance.judging import SETTINGS_KEY, write_images
from benchmarks.performance.measure import Row, in_turns, ratio, show

BATCH = 16


def main() -> None:
    """Measure both models."""
    with tempfile.TemporaryDirectory() as place:
        small = write_vit_small(Path(place) / "small")
        rows = [
            compare(Path(place), "ViT-S/14, 64 images", str(small), 64, 3),
            compare(Path(place), "miniature, 512 images", "miniature:dinov2", 512, 5),
        ]
    show(rows)


def write_vit_small(folder: Path) -> Path:
    """Write DINOv2 ViT-S/14 with random weights."""
    import torch
    from transformers import AutoImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14, layerscale_value=1.0
    )
    Dinov2Model(config).save_pretrained(folder)
    shipped = Path(autolora_eval.__file__).parent / "shipped" / "miniature"
    miniature = AutoImageProcessor.from_pretrained(shipped / "dinov2")
    miniature.size, miniature.crop_size = {"shortest_edge": 256}, {"height": 224, "width": 224}
    miniature.save_pretrained(folder)
    return folder


def compare(place: Path, name: str, model: str, images: int, rounds: int) -> Row:
    """Measure one model: the rate of the stage as a share of the loop's."""
    stage, loop = contestants(place / name.split(",")[0].replace("/", "-"), model, images)
    seconds = in_turns({"loop": loop, "stage": stage}, rounds)
    case = f"{name}: speed relative to a plain loop"
    return ratio(case, seconds["loop"], seconds["stage"], "≥ 0.95")


def contestants(
    place: Path, model: str, images: int
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return the feature stage and a loop by hand, without the loading of the model."""
    import torch
    from PIL import Image

    from autolora_eval._progress import Progress
    from autolora_eval.config.load import load_benchmark
    from autolora_eval.config.plan import make_plan
    from autolora_eval.config.stage_inputs import feature_settings, planned_manifest
    from autolora_eval.runs.folder import RunFolder
    from autolora_eval.scoring.features import FeatureSettings, extract_features

    place.mkdir()
    benchmark = place / "features.yaml"
    benchmark.write_text(yaml.safe_dump(benchmark_of(model, images)))
    write_images(benchmark, place / "run")
    plan, folder = make_plan(load_benchmark(benchmark)), RunFolder(place / "run")
    manifest, settings = planned_manifest(plan, folder), feature_settings(plan)
    cells = [cell.model_copy(update={"settings_key": SETTINGS_KEY}) for cell in manifest.cells]
    manifest = manifest.model_copy(update={"cells": cells})
    loaded = settings.load()
    files = sorted(folder.images(cells[0].id).rglob("*.png"))

    def stage() -> None:
        shutil.rmtree(folder.features(cells[0].id).parent, ignore_errors=True)
        with patch.object(FeatureSettings, "load", lambda _: loaded):  # loading is not measured
            assert extract_features(settings, manifest, folder, Progress()).done == images

    def loop() -> None:
        for start in range(0, len(files), BATCH):
            pictures = []
            for file in files[start : start + BATCH]:
                with Image.open(file) as picture:
                    pictures.append(picture.convert("RGB"))
            pixels = loaded.processor(images=pictures, return_tensors="pt")["pixel_values"]
            with torch.no_grad():
                loaded.model(pixel_values=pixels).pooler_output.numpy()

    return stage, loop


def benchmark_of(model: str, images: int) -> Json:
    """Return a benchmark of one cell."""
    lora = {"path": "miniature:pixel_art_lora"}
    return {
        "name": "features",
        "prompts": [f"prompt number {n}" for n in range(8)],
        "seeds": {"count": images // 8},
        "models": {"SDXL miniature": {"pipeline": "miniature:sdxl", "lora": lora}},
        "methods": {"LoRA": {"guider": "lora"}},
        "features": {"model": model, "batch_size": BATCH},
    }


if __name__ == "__main__":
    main()
