"""From a number of the table down to the images, hashes and judge's replies that it is made of."""

from __future__ import annotations

from pathlib import Path

from autolora_eval.explaining.account import Account
from autolora_eval.explaining.address import find_place, whole_number
from autolora_eval.explaining.cell import explain_cell
from autolora_eval.explaining.image import explain_image
from autolora_eval.explaining.prompt import explain_prompt
from autolora_eval.explaining.sources import read_sources


def explain(
    run: str | Path, cell: str, prompt: str | int | None = None, seed: int | str | None = None
) -> Account:
    """Say what a number of a finished run is made of. Reads the run folder and nothing else.

    Args:
        run: the run folder.
        cell: a cell's id, its method's name, or a part of the id that only one cell has.
        prompt: a prompt's place in the benchmark, its text, or a part that only one prompt has.
        seed: of one image; needs a prompt, unless the run has only one.

    Returns:
        The cell's account, or the prompt's, or the image's: as far down as was asked.

    Raises:
        UsageError: no such run, cell, prompt or seed; the nearest is suggested.
    """
    sources = read_sources(Path(run))
    wanted = None if prompt is None else str(prompt)
    place = find_place(sources, cell, wanted, whole_number(seed))
    if place.seed is not None:
        return explain_image(sources, place)
    if place.prompt_index is not None:
        return explain_prompt(sources, place)
    return explain_cell(sources, place)


__all__ = ["Account", "explain"]
