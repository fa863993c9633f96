"""What one image of each cell took: a fact of the machine, kept apart from what was measured."""

from __future__ import annotations

import pandas as pd

from autolora_eval._files import iterate_jsonl, write_text
from autolora_eval.config.plan import Plan
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.images import SECONDS

SECONDS_PER_IMAGE = "seconds_per_image"


def write_timings(plan: Plan, folder: RunFolder) -> None:
    """Write timings.csv: for each cell, the median of the seconds that its images took.

    The median, since the first batch also warms the machine up. Null where no time was taken, as
    of images that were made elsewhere.

    Args:
        plan: what was run.
        folder: where the images and their metadata are.
    """
    rows = []
    for cell in plan.cells:
        key = folder.settings_key(cell.id)
        taken = [
            row[SECONDS]
            for row in iterate_jsonl(folder.metadata(cell.id))
            if row.get(SECONDS) is not None and key in (None, row.get("settings_key"))
        ]
        rows.append(
            {
                "cell": cell.id,
                "model": cell.model.name,
                "method": cell.method.name,
                "n_timed": len(taken),
                SECONDS_PER_IMAGE: pd.Series(taken, dtype="float64").median(),
            }
        )
    frame = pd.DataFrame(rows)
    write_text(folder.timings, frame.to_csv(index=False, float_format="%.4g", lineterminator="\n"))
