"""All that a report says, as plain data that both templates set in type."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from autolora_eval.analysis.sweep_lines import cost_varies
from autolora_eval.report.evidence import NAME_LENGTH, Evidence
from autolora_eval.report.findings import Finding, caveats, findings
from autolora_eval.report.grids import Grids, image_grids
from autolora_eval.report.provenance import Facts, MethodAsRun, manifest_facts, methods
from autolora_eval.report.reliability import reliability, reliability_caveats
from autolora_eval.report.tables import (
    Block,
    ResultTable,
    accounting,
    differences,
    headline,
    references,
)
from autolora_eval.report.text import NOT_RECORDED, clip, listed, number, of

NAMES_LISTED = 8


@dataclass(frozen=True)
class Content:
    """A report. Every text in it is clean and clipped; every number is already written out.

    Attributes:
        title: the benchmark's name.
        description: the benchmark's sentence about itself.
        compared: one line on what was compared.
        version: of the product that made the run.
        headline: the result table.
        caveats: what a reader must know before believing it.
        findings: in words.
        differences: the paired differences from the baseline.
        references: published values.
        reliability: how far the judge can be trusted; empty without a judge.
        accounting: what each row rests on.
        figure_caption: how to read the figure.
        figure_text: what the figure shows, for those who cannot see it.
        grids: images.
        methods: as run.
        facts: essentials of the manifest.
    """

    title: str
    description: str
    compared: str
    version: str
    headline: list[ResultTable]
    caveats: list[str]
    findings: list[Finding]
    differences: list[ResultTable]
    references: list[ResultTable]
    reliability: list[Block]
    accounting: ResultTable
    figure_caption: str
    figure_text: str
    grids: Grids
    methods: list[MethodAsRun]
    facts: list[Facts]

    def as_data(self) -> dict[str, Any]:
        """Return all but the images as JSON knows it."""
        data = asdict(self)
        data["grids"] = data["grids"]["grids"]
        return data


def build_content(evidence: Evidence) -> Content:
    """Return the report of a run."""
    published = references(evidence)
    return Content(
        title=clip(evidence.recorded("benchmark", "name") or "Unnamed benchmark", NAME_LENGTH),
        description=clip(evidence.recorded("benchmark", "description") or "", 2000),
        compared=_compared(evidence),
        version=clip(evidence.recorded("autolora_eval_version") or NOT_RECORDED, NAME_LENGTH),
        headline=headline(evidence),
        caveats=[*caveats(evidence), *reliability_caveats(evidence)],
        findings=findings(evidence),
        differences=differences(evidence),
        references=[] if published is None else [published],
        reliability=reliability(evidence),
        accounting=accounting(evidence),
        figure_caption=_figure_caption(evidence),
        figure_text=_figure_text(evidence),
        grids=image_grids(evidence),
        methods=methods(evidence),
        facts=manifest_facts(evidence),
    )


def _compared(evidence: Evidence) -> str:
    """Say what was compared: methods, models, prompts, seeds, images."""
    n_methods = list(dict.fromkeys(clip(row["method"], NAME_LENGTH) for row in evidence.rows))
    models = [clip(model, NAME_LENGTH) for model in evidence.models]
    prompts = {int(row["prompt_index"]) for row in evidence.images}
    seeds = {int(row["seed"]) for row in evidence.images}
    named = listed(n_methods) if len(n_methods) <= NAMES_LISTED else of(len(n_methods), "method")
    on = listed(models) if len(models) <= NAMES_LISTED else of(len(models), "model")
    return (
        f"{named}, on {on}: {of(len(prompts), 'prompt')} × {of(len(seeds), 'seed')}, "
        f"{of(len(evidence.images), 'image')} in all. Every method was given the same prompts "
        "and seeds."
    )


def _figure_caption(evidence: Evidence) -> str:
    bars = f"Bars: 95 % intervals.{_not_drawn(evidence)}"
    scores = [measure for measure in evidence.measured if measure.kind == "score"]
    swept = list(dict.fromkeys(name for point in evidence.points.values() for name in point))
    beside = f" Beside a mark: its {listed([s.replace('_', ' ') for s in swept])}." if swept else ""
    if not scores:
        return f"Diversity of each cell. {bars}"
    curves = below = ""
    if cost_varies(evidence.run.table, evidence.points):
        below = " Below, diversity and each score against the denoiser passes for one image."
    if any(score.higher_is_better for score in scores):
        curves = " Grey curves join places of equal Diversity × score; up and right is better."
    return f"Diversity against each score, one mark a cell.{below}{beside}{curves} {bars}"


def _not_drawn(evidence: Evidence) -> str:
    """Name the cells that lack a mark somewhere: what is missing must not look like nothing."""
    drawn = [measure.column for measure in evidence.measured if measure.kind != "product"]
    lacking = [
        f"{clip(row['model'], NAME_LENGTH)} × {evidence.labels[row['cell']]}"
        for row in evidence.rows
        if any(number(row.get(column)) is None for column in drawn)
    ]
    return f" Without a mark, for want of a value: {'; '.join(lacking)}." if lacking else ""


def _figure_text(evidence: Evidence) -> str:
    cells = of(len(evidence.rows), "cell")
    scores = [m.display_name for m in evidence.measured if m.kind == "score"]
    against = f" against {listed(scores)}" if scores else ""
    return clip(f"Diversity of {cells}{against}; the numbers are in the result table.", 300)
