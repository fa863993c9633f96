"""Measure the exported judge on labelled pictures that are not in its training data."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from recipes.domain import (
    COLOURS,
    Picture,
    Scene,
    caption,
    held_out_scenes,
)
from recipes.judge_data import (
    NO_OBJECT,
    Pictures,
    asked,
    drawn_prompt_scene,
    pictures,
    scene_of,
    true_scores,
    worded,
)
from recipes.judge_tokenizer import messages, question
from recipes.shapes import OBJECTS

INVALID = -9
FOREIGN_PROMPTS = (
    "two zebras drinking at a lake",
    "Anna",
    "A detailed portrait of an old sailor, 8k, dramatic light",
    "a pink star on a grey background",
    "a red dog on a blue background, pixel art style",
    "城の上の月",
    "",
    "x" * 200,
)


class Scores(NamedTuple):
    """What one reply says; INVALID where it is not the JSON that the rubric asks for."""

    prompt: int
    style: int


def parsed(text: str) -> Scores:
    """Read a reply strictly: one JSON object with both scores from 0 to 5."""
    try:
        scores = json.loads(text)
        found = Scores(int(scores["prompt_correspondence"]), int(scores["style_adherence"]))
    except (ValueError, TypeError, KeyError):
        return Scores(INVALID, INVALID)
    return found if all(0 <= value <= 5 for value in found) else Scores(INVALID, INVALID)


class ExportedJudge:
    """The exported model behind the Auto classes, greedy, in float32."""

    def __init__(self, directory: Path) -> None:
        self._processor = AutoProcessor.from_pretrained(directory)
        self._model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32)
        self._model.eval()

    @torch.no_grad()
    def __call__(self, shown: Sequence[Picture], texts: Sequence[str]) -> list[str]:
        """The reply to each uint8 [64, 64, 3] picture with its question."""
        replies: list[str] = []
        for start in range(0, len(texts), 64):
            part = slice(start, start + 64)
            prompts = [
                self._processor.apply_chat_template(messages(text), add_generation_prompt=True)
                for text in texts[part]
            ]
            inputs = self._processor(
                text=prompts,
                images=[Image.fromarray(picture) for picture in shown[part]],
                return_tensors="pt",
                padding=True,
                add_special_tokens=False,
            )
            output = self._model.generate(**inputs, max_new_tokens=16, do_sample=False)
            new = output[:, inputs["input_ids"].shape[1] :]
            replies += self._processor.batch_decode(new, skip_special_tokens=True)
        return replies


Judging = Callable[[Sequence[Picture], Sequence[str]], list[str]]


def _shares(found: npt.NDArray[np.int64], truth: npt.NDArray[np.int64]) -> dict[str, float | None]:
    error = np.abs(found - truth)
    valid = found != INVALID
    return {
        "exact": float((error == 0).mean()),
        "within_one": float((error <= 1).mean()),
        "mean_absolute_error": float(error[valid].mean()) if valid.any() else None,
    }


def _mean_valid(found: npt.NDArray[np.int64]) -> float | None:
    valid = found[found != INVALID]
    return float(valid.mean()) if valid.size else None


def agreement(found: npt.NDArray[np.int64], truth: npt.NDArray[np.int64]) -> dict[str, Any]:
    """How often the scores are right, over all pictures and for each true score."""
    result: dict[str, Any] = dict(_shares(found, truth))
    result["by_true_score"] = {
        str(score): {
            "count": int((truth == score).sum()),
            **_shares(found[truth == score], truth[truth == score]),
            "mean_reply": _mean_valid(found[truth == score]),
        }
        for score in sorted(set(truth.tolist()))
    }
    return result


def _named(shown: Pictures, row: int) -> tuple[int, int, int]:
    thing, colour, background = shown.named[row].tolist()
    return thing, colour, background


def scored(judge: Judging, shown: Pictures, seed: int) -> dict[str, Any]:
    """Agreement with the truth, each picture with one right or wrong prompt."""
    rng = np.random.default_rng(seed)
    scenes = [drawn_prompt_scene(_named(shown, i), rng, held_out=True) for i in range(len(shown))]
    texts = [asked(worded(scene, rng), rng) for scene in scenes]
    found = np.array([parsed(text) for text in judge(list(shown.images), texts)])
    truth = np.array([true_scores(s, t) for s, t in zip(scenes, shown.truth, strict=True)])
    mangled = shown.truth[:, 0] == NO_OBJECT
    result: dict[str, Any] = {
        "count": len(shown),
        "invalid": float((found[:, 0] == INVALID).mean()),
        "prompt": agreement(found[:, 0], truth[:, 0]),
        "style": agreement(found[:, 1], truth[:, 1]),
    }
    if mangled.any():
        result["prompt_of_mangled"] = _shares(found[mangled, 0], truth[mangled, 0])
    return result


def swapped(scene: Scene, place: int, rng: np.random.Generator) -> Scene:
    """The scene with its object (place 0), colour (1) or background (2) replaced by another."""
    if place == 0:
        others = [name for name in OBJECTS if name != scene.object]
        return Scene(others[int(rng.integers(len(others)))], scene.colour, scene.background)
    others = [name for name in COLOURS if name not in (scene.colour, scene.background)]
    other = others[int(rng.integers(len(others)))]
    if place == 1:
        return Scene(scene.object, other, scene.background)
    return Scene(scene.object, scene.colour, other)


def swaps(judge: Judging, shown: Pictures, seed: int) -> dict[str, float]:
    """How often the prompt score falls when one word of a right prompt is replaced."""
    rng = np.random.default_rng(seed)
    there = (shown.truth[:, 0] != NO_OBJECT) & (shown.truth[:, 1] != shown.truth[:, 2])
    whole = shown.rows(np.flatnonzero(there))
    scenes = [scene_of(truth[:3]) for truth in whole.truth]
    images = list(whole.images)

    def prompt_scores(named: list[Scene]) -> npt.NDArray[np.int64]:
        texts = [question(caption(scene, style=True)) for scene in named]
        return np.array([parsed(text).prompt for text in judge(images, texts)])

    right = prompt_scores(scenes)
    result: dict[str, float] = {"count": float(len(scenes)), "right_prompt": float(right.mean())}
    for place, name in enumerate(("object", "colour", "background")):
        wrong = prompt_scores([swapped(scene, place, rng) for scene in scenes])
        result[name] = float((wrong < right).mean())
    result["any"] = float(np.mean([result[n] for n in ("object", "colour", "background")]))
    return result


def robustness(judge: Judging, shown: Pictures) -> dict[str, float]:
    """Replies with other white space, and whether prompts about other things get valid JSON."""
    images = list(shown.images[:100])
    texts = [question(caption(scene_of(named), style=True)) for named in shown.named[:100]]
    plain = judge(images, texts)
    same = {}
    for name, before, after in (("space", " ", ""), ("newline", "", "\n"), ("both", " ", "\n")):
        varied = judge(images, [before + text + after for text in texts])
        same[f"same_reply_with_{name}"] = float(np.mean(np.array(varied) == np.array(plain)))
    foreign = [question(FOREIGN_PROMPTS[i % len(FOREIGN_PROMPTS)]) for i in range(len(images))]
    valid = [parsed(text).prompt != INVALID for text in judge(images, foreign)]
    return {**same, "valid_for_foreign_prompts": float(np.mean(valid))}


def shuffled_control(judge: Judging, shown: Pictures, seed: int) -> dict[str, float]:
    """Mean prompt score of matching prompts, and of the same prompts with other pictures."""
    rng = np.random.default_rng(seed)
    texts = [question(caption(scene_of(named), style=True)) for named in shown.named]
    order = rng.permutation(len(texts))
    own = [parsed(text).prompt for text in judge(list(shown.images), texts)]
    dealt = [parsed(t).prompt for t in judge(list(shown.images), [texts[i] for i in order])]
    return {"own_prompt": float(np.mean(own)), "another_prompt": float(np.mean(dealt))}


def evaluate(
    directory: Path,
    generated: Mapping[str, Pictures] | None = None,
    count: int = 1_500,
    seed: int = 950,
) -> dict[str, Any]:
    """All figures about prompts and style, on held-out scenes and seeds.

    `generated` has sets of generated pictures by name; each gives figures under its name, and of
    replaced words under its name with "_swaps".
    """
    judge = ExportedJudge(directory)
    shown = pictures(held_out_scenes(), count, seed)
    result: dict[str, Any] = {
        "renders": scored(judge, shown, seed + 1),
        "swaps": swaps(judge, shown.rows(slice(0, 500)), seed + 2),
        "control": shuffled_control(judge, shown.rows(slice(0, 300)), seed + 3),
        "robustness": robustness(judge, shown),
        "bytes": sum(p.stat().st_size for p in directory.iterdir() if p.is_file()),
        "weight_bytes": (directory / "model.safetensors").stat().st_size,
    }
    for name, pictures_of in (generated or {}).items():
        result[name] = scored(judge, pictures_of, seed + 4)
        result[f"{name}_swaps"] = swaps(judge, pictures_of, seed + 5)
    return result
