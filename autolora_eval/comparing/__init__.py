"""Cells of several runs in one paired table and report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autolora_eval.comparing.conditions import Difference, differences, refuse, without_baseline
from autolora_eval.comparing.merge import merge
from autolora_eval.comparing.recorded import recorded_plan
from autolora_eval.comparing.sources import open_sources
from autolora_eval.run_folder import Run, RunFolder, open_run


def compare(
    runs: Sequence[str | Path],
    output: str | Path,
    *,
    baseline: str | None = None,
    allow_different_judges: bool = False,
) -> tuple[Run, list[Difference]]:
    """Put the cells of several runs into one table, paired over the prompts and seeds they share.

    Nothing is generated, extracted or judged: images, features and replies are taken from the
    runs. A method that several runs have is told apart by the run's name, unless all its images
    are the same.

    Args:
        runs: two or more finished run folders.
        output: where the joint run folder is written.
        baseline: the method that the others are compared with; the first run's where not given.
        allow_different_judges: compare scores although different judges gave them.

    Returns:
        The joint run, and in what the runs differ.

    Raises:
        UsageError: the runs cannot be compared: another extractor, rubric or judge, no prompt or
            seed in common; or `output` is something else than an earlier comparison.
    """
    sources = open_sources(runs)
    found = differences(sources)
    refuse(found, allow_different_judges=allow_different_judges)
    plan, once = recorded_plan(sources, baseline)
    told = [*found, *once, *without_baseline(plan)]
    folder = RunFolder(Path(output))
    merge(plan, sources, folder, told)
    return open_run(folder.path), told


__all__ = ["Difference", "compare"]
