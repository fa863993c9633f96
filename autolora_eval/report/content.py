"""All that a report says, as plain data that both templates set in type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from autolora_eval.analysis.figures.declaration import DrawnFigure
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
from autolora_eval.text import NOT_RECORDED, clip, listed, of

NAMES_LISTED = 8
CAPTION_LENGTH = 2000


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
        figures: the charts, in order.
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
    figures: list[DrawnFigure]
    grids: Grids
    methods: list[MethodAsRun]
    facts: list[Facts]

    def as_data(self) -> dict[str, Any]:
        """Return all but the images and figures themselves as JSON knows it."""
        data = asdict(self)
        data["grids"] = data["grids"]["grids"]
        data["figures"] = [
            {
                "name": figure.name,
                "kind": figure.kind,
                "title": clip(figure.title, NAME_LENGTH),
                "caption": clip(figure.caption, CAPTION_LENGTH),
                "text": clip(figure.text, CAPTION_LENGTH),
            }
            for figure in self.figures
        ]
        return data


def build_content(evidence: Evidence, figures: Sequence[DrawnFigure] = ()) -> Content:
    """Return the report of a run.

    Args:
        evidence: the run.
        figures: its charts.
    """
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
        figures=list(figures),
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
