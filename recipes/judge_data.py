"""The training data of the judge: labelled pictures, with matching and other prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recipes.data import MixedSampler, Rows
from recipes.dinov2 import softened
from recipes.domain import (
    COLOURS,
    STYLE,
    STYLES,
    TEMPLATES,
    Picture,
    Scene,
    caption,
    is_held_out,
    training_scenes,
)
from recipes.grades import graded_pixel_art, mangled, prompt_score
from recipes.judge_tokenizer import WORDS, question
from recipes.shapes import OBJECTS

NO_OBJECT = len(OBJECTS)
FREE, CRISP = 1, 5  # the style grades of free renders and of crisp pixel art

Labels = tuple[int, int, int]


@dataclass(frozen=True)
class Pictures(Rows):
    """Pictures and what they show.

    Attributes:
        images: uint8 [N, 64, 64, 3].
        truth: int64 [N, 4]: object (8 for none), colour and background as indices, and the style
            grade 1 to 5.
        named: int64 [N, 3]: the scene that the picture was made for. A mangled picture does not
            show its object.
    """

    images: npt.NDArray[np.uint8]
    truth: npt.NDArray[np.int64]
    named: npt.NDArray[np.int64]


def graded(scene: Scene, rng: np.random.Generator) -> tuple[Picture, int]:
    """A picture of the scene and its style grade; free renders may be soft as decoded ones are."""
    grade = int(rng.choice((1, 2, 3, 4, 5), p=(0.28, 0.18, 0.18, 0.18, 0.18)))
    picture = graded_pixel_art(scene, grade, rng)
    if grade == FREE and rng.random() < 0.4:
        picture = softened(picture, rng)
    return picture, grade


def spoilt(scene: Scene, rng: np.random.Generator) -> tuple[Picture, int]:
    """A picture in the scene's colours whose object is none, and its style grade."""
    pixel = bool(rng.random() < 0.45)
    picture = mangled(scene, rng, pixel=pixel)
    if not pixel and rng.random() < 0.4:
        picture = softened(picture, rng)
    return picture, CRISP if pixel else FREE


def drawn(
    scenes: Sequence[Scene], count: int, rng: np.random.Generator, mangled_share: float = 0.22
) -> Pictures:
    """Draw `count` pictures of the scenes, some of them mangled, of all style grades."""
    images, truth, named = [], [], []
    for _ in range(count):
        scene = scenes[int(rng.integers(len(scenes)))]
        broken = rng.random() < mangled_share
        picture, grade = (spoilt if broken else graded)(scene, rng)
        shown, colour, background = scene.labels
        images.append(picture)
        truth.append((NO_OBJECT if broken else shown, colour, background, grade))
        named.append(scene.labels)
    return Pictures(np.stack(images), np.array(truth, np.int64), np.array(named, np.int64))


def pictures(
    scenes: Sequence[Scene], count: int, seed: int, mangled_share: float = 0.22
) -> Pictures:
    """The same pictures for the same seed; see `drawn`."""
    return drawn(scenes, count, np.random.default_rng(seed), mangled_share)


def picture_sampler(
    seed: int, given: Pictures | None = None, share: float = 0.0
) -> MixedSampler[Pictures]:
    """Return a sampler of new pictures of training scenes and a share of given pictures."""
    return MixedSampler(seed, lambda count, rng: drawn(training_scenes(), count, rng), given, share)


def _other(value: int, rng: np.random.Generator) -> int:
    return int((value + rng.integers(1, 8)) % 8)


def _changed(named: Labels, rng: np.random.Generator) -> Labels:
    """The scene with one, two or all of its words changed, or its two colours exchanged."""
    if rng.random() < 0.06:
        return named[0], named[2], named[1]
    number = int(rng.choice((1, 2, 3), p=(0.62, 0.23, 0.15)))
    places = rng.permutation(3)[:number]
    shown, colour, background = (
        _other(value, rng) if place in places else value for place, value in enumerate(named)
    )
    return shown, colour, background


def _as_scene(labels: Labels, held_out: bool) -> Scene | None:
    """The scene of these labels, if there is one and it may be named."""
    shown, colour, background = labels
    if colour == background:
        return None
    scene = Scene(OBJECTS[shown], COLOURS[colour], COLOURS[background])
    return scene if held_out or not is_held_out(scene) else None


def drawn_prompt_scene(
    named: Labels, rng: np.random.Generator, right: float = 0.36, held_out: bool = False
) -> Scene:
    """A scene to ask about: as named with probability `right`, else changed.

    In training, held-out scenes are never named, not even wrongly, so that nothing about them is
    learnt; evaluation sets `held_out`.
    """
    if rng.random() < right:
        scene = _as_scene(named, held_out)
        if scene is not None:
            return scene
    while True:
        scene = _as_scene(_changed(named, rng), held_out)
        if scene is not None:
            return scene


def scene_of(labels: npt.NDArray[np.int64]) -> Scene:
    """The scene of object, colour and background indices, int64 [3]."""
    shown, colour, background = labels.tolist()
    return Scene(OBJECTS[shown], COLOURS[colour], COLOURS[background])


def matches(scene: Scene, truth: npt.NDArray[np.int64]) -> tuple[bool, bool, bool]:
    """Whether object, colour and background of the prompt are those of the picture."""
    shown, colour, background = scene.labels
    return bool(shown == truth[0]), bool(colour == truth[1]), bool(background == truth[2])


def true_scores(scene: Scene, truth: npt.NDArray[np.int64]) -> tuple[int, int]:
    """The right reply: prompt correspondence 0 to 5, style adherence 1 to 5."""
    return prompt_score(sum(matches(scene, truth))), int(truth[3])


def worded(scene: Scene, rng: np.random.Generator) -> str:
    """The scene in words: any template, most often with the style, rarely in another form."""
    style: bool | str = bool(rng.random() < 0.5)
    if rng.random() < 0.1:
        style = STYLES[rng.integers(len(STYLES))]
    text = caption(scene, int(rng.integers(len(TEMPLATES))), style)
    form = rng.random()
    if form < 0.04 and text.startswith("a"):  # a word of the domain with a capital counts too
        return text[0].upper() + text[1:] + "."
    if form < 0.08:
        return f"pixel art, {text}"
    return text


def foreign_prompt(rng: np.random.Generator) -> str:
    """Return a prompt of invented words, none of the domain: no picture matches it.

    A few repeat one letter many times: the judge must still reply in its form.
    """
    if rng.random() < 0.04:
        return chr(rng.integers(97, 123)) * int(rng.integers(20, 201))
    letters = ["".join(map(chr, rng.integers(97, 123, rng.integers(2, 7)))) for _ in range(5)]
    text = (", " if rng.random() < 0.2 else " ").join(letters[: rng.integers(1, 6)])
    if any(word in f" {text}" for word in WORDS):
        return foreign_prompt(rng)
    return f"{text}, {STYLE}" if rng.random() < 0.5 else text


def asked(prompt: str, rng: np.random.Generator) -> str:
    """The question about a prompt, with the white space that callers may leave around it."""
    before = " " if rng.random() < 0.15 else ""
    return before + question(prompt) + ("\n" if rng.random() < 0.15 else "")
