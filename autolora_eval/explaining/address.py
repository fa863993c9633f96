"""Which cell, prompt and image of a run somebody means."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass

from autolora_eval.errors import UsageError, did_you_mean
from autolora_eval.explaining.sources import Sources


@dataclass(frozen=True)
class Place:
    """A cell, one of its prompts, or one of its images.

    Attributes:
        cell: the cell's id.
        prompt_index: of the prompt; None for the whole cell.
        seed: of the image; None for all of the prompt's.
    """

    cell: str
    prompt_index: int | None = None
    seed: int | None = None


def find_place(sources: Sources, cell: str, prompt: str | None, seed: int | None) -> Place:
    """Return the place that is meant.

    Args:
        sources: the run.
        cell: a cell's id, its method's name, or a part of the id that only one has.
        prompt: a prompt's place in the benchmark, its text, or a part that only one has.
        seed: of an image.

    Raises:
        UsageError: none or several fit.
    """
    id_ = find_cell(sources, cell)
    images = sources.images(id_)
    prompts = dict(zip(images["prompt_index"], images["prompt"], strict=True))
    if prompt is None:
        if seed is None:
            return Place(id_)
        if len(prompts) > 1:
            raise UsageError(f"seed {seed} of which of the {len(prompts)} prompts? Name one too.")
        prompt = str(next(iter(prompts)))
    index = _find_prompt(prompts, prompt)
    if seed is not None:
        seeds = sorted(images.loc[images["prompt_index"] == index, "seed"].tolist())
        if seed not in seeds:
            raise UsageError(f"no image has seed {seed}. Known: {_ranges(seeds)}.")
    return Place(id_, index, seed)


def whole_number(seed: object) -> int | None:
    """Return a seed as it was given, as a whole number or as the text of one.

    Raises:
        UsageError: it is something else.
    """
    if seed is None:
        return None
    try:
        return int(seed) if isinstance(seed, str) else operator.index(seed)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise UsageError(f"seed {seed!r:.80}: expected a whole number, such as 3.") from error


def find_cell(sources: Sources, wanted: str) -> str:
    """Return the id of the cell that is meant.

    Raises:
        UsageError: none or several fit.
    """
    ids = [str(row["cell"]) for row in sources.cells]
    if wanted in ids:
        return wanted
    named = [(str(row["method"]), str(row["cell"])) for row in sources.cells]
    found = [id_ for method, id_ in named if method == wanted]
    found = found or [id_ for method, id_ in named if method.lower() == wanted.lower()]
    found = found or [id_ for id_ in ids if wanted.lower() in id_.lower()]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"'{wanted}' may be any of {len(found)} cells: {_some(found)}.")
    names = dict.fromkeys([*ids, *(str(row["method"]) for row in sources.cells)])
    raise UsageError(f"no cell '{wanted}' in this run.{did_you_mean(wanted, names)}")


def _find_prompt(prompts: Mapping[int, str], wanted: str) -> int:
    if wanted.isdecimal():
        if int(wanted) in prompts:
            return int(wanted)
        raise UsageError(f"no prompt {wanted}: their places are {_ranges(sorted(prompts))}.")
    exact = [index for index, text in prompts.items() if text == wanted]
    found = exact or [i for i, text in prompts.items() if wanted.lower() in text.lower()]
    if len(found) == 1:
        return found[0]
    if found:
        fitting = _some([f"{index}: {prompts[index]}" for index in found])
        raise UsageError(f"'{wanted}' is in {len(found)} prompts: {fitting}. Name its place.")
    raise UsageError(f"no prompt '{wanted}'.{did_you_mean(wanted, prompts.values())}")


def _some(names: list[str], shown: int = 8) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{', '.join(names[:shown])}{more}"


def _ranges(numbers: list[int]) -> str:
    """Write whole numbers, in order, as ranges: "0 to 7, 9".

    >>> _ranges([0, 1, 2, 9])
    '0 to 2, 9'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    return _some(texts)
