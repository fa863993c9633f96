"""Write small timm models, and print the features of the extractor and of timm itself.

For an environment with timm and the torchvision that it needs: `python timm_features.py FOLDER`.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from pretended_gpu import GPU, pretended_gpu
from timm.models import save_for_hf

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval.scoring.extractor import EXTRACTORS, Loading, NoParameters
from autolora_eval.sources.model_source import Source

MODELS = {"vit_tiny_patch16_224": {"img_size": 48}, "resnet10t": {}}
BATCH = 4


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sides = ((90, 70), (48, 48), (64, 200))
    return [Image.fromarray(rng.integers(0, 256, (*side, 3), dtype=np.uint8)) for side in sides]


def written(name: str, folder: Path) -> Path:
    """Save a model with random weights and a classifier, as timm does for the hub."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=3, **MODELS[name])
    size = MODELS[name].get("img_size", 64)
    config = {"pretrained_cfg": {"input_size": (3, size, size)}}
    save_for_hf(model, folder, model_config=config, safe_serialization=True)
    return folder


def by_timm(folder: Path) -> torch.Tensor:
    """Return timm's own pooled features of the same files."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    given = timm.data.resolve_data_config({}, model=model)
    transform = timm.data.create_transform(**given)
    with torch.no_grad():
        pixels = torch.stack([transform(picture) for picture in pictures()])
        return model.forward_head(model.forward_features(pixels), pre_logits=True)


def main(folder: Path) -> None:
    found = {}
    for name in MODELS:
        place = written(name, folder / name)
        source = Source(str(place), "folder", str(place))
        device = torch.device("cpu")
        loading = Loading(source, NoParameters(), device, torch.float32, BATCH)
        extractor = EXTRACTORS.find("timm").load(loading)
        with pretended_gpu():
            there = EXTRACTORS.find("timm").load(replace(loading, device=GPU))
            on_gpu = there(pictures())
        found[name] = {
            "on_gpu": on_gpu.tolist(),
            "files": sorted(file.name for file in place.iterdir()),
            "ours": extractor(pictures()).tolist(),
            "alone": extractor(pictures()[:1]).tolist(),
            "timm": by_timm(place).tolist(),
            "preprocessing": extractor.preprocessing(),
        }
    print(json.dumps(found | {"pickle": refusal_of_a_pickle(folder / "pickled")}))


def refusal_of_a_pickle(folder: Path) -> str:
    save_for_hf(timm.create_model("resnet10t"), folder, safe_serialization=False)
    source = Source("pickled", "folder", str(folder))
    loading = Loading(source, NoParameters(), torch.device("cpu"), torch.float32, BATCH)
    try:
        EXTRACTORS.find("timm").load(loading)
    except AutoLoRAEvalError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    main(Path(sys.argv[1]))
