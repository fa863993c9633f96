"""One prompt of a cell: its images, and what each does to the prompt's diversity."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from autolora_eval._text import DASH, format_fixed
from autolora_eval.analysis.explain_cell import command, explain_cell, text
from autolora_eval.analysis.explain_image import explain_image
from autolora_eval.analysis.explain_reader import (
    Place,
    Row,
    Sources,
    find_place,
    read_sources,
    whole_number,
)
from autolora_eval.analysis.explanation import Explanation, Facts, Listing
from autolora_eval.scoring.diversity import leave_one_out, unit_vectors


def explain_prompt(sources: Sources, place: Place) -> Explanation:
    """Return what a prompt's share in a cell's numbers is made of."""
    images = sources.images(place.cell, place.prompt_index)
    cell = sources.cell(place.cell)
    rows = [
        {str(key): value for key, value in image.items()} for image in images.to_dict("records")
    ]
    return Explanation(
        title=f"{cell['model']} × {cell['method']}, prompt {place.prompt_index}",
        parts=[
            _what(sources, place, str(rows[0]["prompt"])),
            _images(sources, place.cell, rows),
        ],
        further=[command(sources, place.cell, place.prompt_index, rows[0]["seed"])],
    )


def _what(sources: Sources, place: Place, prompt: str) -> Facts:
    known = sources.run.diversity
    known = known[(known["cell"] == place.cell) & (known["prompt_index"] == place.prompt_index)]
    facts = [("prompt", text(prompt))]
    for found in known.to_dict("records"):
        error = f" ± {format_fixed(found['standard_error'], 4)} (jackknife standard error)"
        value = f"{format_fixed(found['diversity'], 4)}{error}"
        if found["diversity"] != found["diversity"]:
            value = f"undefined: {text(found['reason'])}"
        facts += [("diversity", value), ("images in it", str(found["n"]))]
        if isinstance(found.get("reference_cell"), str):
            facts.append(("compared with", found["reference_cell"]))
        for measure in (one for one in sources.measures if one.kind == "extra"):
            why = f"undefined: {text(found.get(f'{measure.column}_reason'))}"
            known_here = found[measure.column] == found[measure.column]
            facts.append(
                (measure.column, format_fixed(found[measure.column], 4) if known_here else why)
            )
    return Facts("What it is", facts)


def _images(sources: Sources, cell: str, rows: list[Row]) -> Listing:
    """List the images: scores, what is wrong with them, their nearest, diversity without them."""
    nearest, without = _in_feature_space(sources, cell, rows)
    listed = []
    for row in rows:
        scores = [format_fixed(row[measure.column], 2) for measure in sources.scores]
        wrong = [row.get("image_error"), row.get("unscored_reason")]
        reasons = "; ".join(reason for reason in wrong if isinstance(reason, str))
        near, less = nearest.get(row["seed"], DASH), format_fixed(without.get(row["seed"]), 4)
        listed.append([str(row["seed"]), *scores, near, less, str(row["file"]), reasons])
    return Listing(
        "Its images",
        [
            "seed",
            *(measure.column for measure in sources.scores),
            "nearest (cosine)",
            "diversity without it",
            "file",
            "missing",
        ],
        listed,
        note="An image whose absence lowers diversity is one that differs from the others.",
    )


def _in_feature_space(
    sources: Sources, cell: str, rows: list[Row]
) -> tuple[dict[int, str], dict[int, float]]:
    """Return, by seed, the nearest other image of the prompt, and equation (8) without it."""
    features = sources.features(cell)
    if features is None:
        return {}, {}
    places = {image_id: place for place, image_id in enumerate(features.ids)}
    known = [row for row in rows if row["image_id"] in places]
    if len(known) < 2:
        return {}, {}
    units = unit_vectors(features.matrix[[places[row["image_id"]] for row in known]])
    cosines = units @ units.T
    np.fill_diagonal(cosines, -np.inf)
    seeds = [int(row["seed"]) for row in known]
    nearest = {
        seed: f"seed {seeds[best]} ({format_fixed(cosines[place, best])})"
        for place, (seed, best) in enumerate(zip(seeds, cosines.argmax(axis=1), strict=True))
    }
    if len(known) < 3:
        return nearest, {}
    return nearest, dict(zip(seeds, leave_one_out(units).tolist(), strict=True))


# --------------------
# From a number of the table down to the images, hashes and judge's replies that it is made of.


def explain(
    run: str | Path, cell: str, prompt: str | int | None = None, seed: int | str | None = None
) -> Explanation:
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


__all__ = ["Explanation", "explain"]
