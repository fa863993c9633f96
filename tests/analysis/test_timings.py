"""Seconds per image: the median over the images of a cell's current settings."""

import numpy as np
import pandas as pd
from scored_run import SETTINGS, write_manifest

from autolora_eval._files import write_jsonl
from autolora_eval.analysis.scores import write_timings


def test_a_cell_has_the_median_of_its_current_images(make):
    plan, folder = make("run")
    write_manifest(plan, folder)
    first, second = plan.cells
    taken = [*((s, SETTINGS) for s in (1.0, 9.0, 2.0, None)), (50.0, "01d01d01d")]
    rows = [
        {"file_name": f"a/{n}.png", "seconds": s, "settings_key": k}
        for n, (s, k) in enumerate(taken)
    ]
    write_jsonl(folder.metadata(first.id), rows)
    write_jsonl(folder.metadata(second.id), [{"file_name": "a/0.png", "settings_key": SETTINGS}])
    write_timings(folder.read_manifest(), folder)
    found = pd.read_csv(folder.timings)
    assert list(found["cell"]) == [first.id, second.id]
    assert list(found["n_timed"]) == [3, 0]
    assert found["seconds_per_image"][0] == 2.0
    assert np.isnan(found["seconds_per_image"][1])
