"""All that a report says, as plain data that both templates set in type."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from autolora_eval._text import NOT_RECORDED, join_names, pluralize, truncate
from autolora_eval.report.caveats import caveats
from autolora_eval.report.cost import cost_sentence, cost_table
from autolora_eval.report.figures._base import DrawnFigure
from autolora_eval.report.findings import Finding, certainty, findings, verdicts
from autolora_eval.report.grids import Grids, image_grids
from autolora_eval.report.judge_reliability import reliability, reliability_caveats
from autolora_eval.report.provenance import manifest_facts, methods
from autolora_eval.report.results import all_results, first_table, is_by_point
from autolora_eval.report.run_view import NAME_LENGTH, RunView
from autolora_eval.report.tables import ResultTable, accounting, differences, published_table

NAMES_LISTED = 8
CAPTION_LENGTH = 2000
# The one that stands on the first page.
TRADE_OFF = "diversity_vs_scores"


@dataclass(frozen=True)
class FirstPage:
    """What a busy reader needs.

    Attributes:
        verdicts: who is first.
        table: all cells, or the best of each method.
        figure: name of the trade-off figure; empty without one.
        findings: what differs from it.
        sure: how far that can be believed.
        cost: what the methods cost; empty where there is nothing to compare.
        caveats: what a reader must know before believing any of it.
    """

    verdicts: list[Finding]
    table: ResultTable
    figure: str
    findings: list[Finding]
    sure: list[str]
    cost: str
    caveats: list[str]


@dataclass(frozen=True)
class Part:
    """A piece of a section: `value` is a text, a `ResultTable`, a `Grid`, … as `kind` says."""

    kind: Literal["heading", "text", "table", "figure", "grid", "method", "facts"]
    value: Any


@dataclass(frozen=True)
class Section:
    """A chapter of the report.

    Attributes:
        name: of the kind of section.
        title: heading.
        parts: in order.
    """

    name: str
    title: str
    parts: list[Part]


@dataclass(frozen=True)
class Content:
    """A report. Every text in it is clean and clipped; every number is already written out.

    Attributes:
        title: the benchmark's name.
        description: the benchmark's sentence about itself.
        compared: one line on what was compared.
        version: of the product that made the run.
        first: the first page.
        sections: the rest, in order.
        figures: the charts, in order.
        grids: images.
    """

    title: str
    description: str
    compared: str
    version: str
    first: FirstPage
    sections: list[Section]
    figures: list[DrawnFigure]
    grids: Grids

    def as_data(self) -> dict[str, Any]:
        """Return all but the images and figures themselves as JSON knows it."""
        data = asdict(replace(self, grids=Grids([], {}), figures=[]))
        del data["grids"]
        data["figures"] = {figure.name: _told(figure) for figure in self.figures}
        return data


def _told(figure: DrawnFigure) -> dict[str, str]:
    return {
        "title": truncate(figure.title, NAME_LENGTH),
        "caption": truncate(figure.caption, CAPTION_LENGTH),
        "text": truncate(figure.text, CAPTION_LENGTH),
    }


def build_content(evidence: RunView, figures: Sequence[DrawnFigure] = ()) -> Content:
    """Return the report of a run.

    Args:
        evidence: the run.
        figures: its charts; that of the trade-off stands on the first page.
    """
    grids = image_grids(evidence)
    first = _first_page(evidence, figures)
    inside = [figure.name for figure in figures if figure.name != first.figure]
    sections = [
        Section("results", "Results", _tables(all_results(evidence))),
        Section("differences", "Differences from the baseline", _tables(differences(evidence))),
        Section("published", "Beside the published values", _tables(_published(evidence))),
        Section("figures", "Figures", [Part("figure", name) for name in inside]),
        Section("images", "Images", [Part("grid", grid) for grid in grids.grids]),
        Section("reliability", "How far the judge can be trusted", _reliability(evidence)),
        Section("cost", "Cost", _tables([cost_table(evidence)])),
        Section("methods", "Methods as run", [Part("method", m) for m in methods(evidence)]),
        Section("manifest", "Where the numbers come from", _manifest(evidence)),
    ]
    return Content(
        title=truncate(evidence.recorded("benchmark", "name") or "Unnamed benchmark", NAME_LENGTH),
        description=truncate(evidence.recorded("benchmark", "description") or "", 2000),
        compared=_compared(evidence),
        version=truncate(evidence.recorded("autolora_eval_version") or NOT_RECORDED, NAME_LENGTH),
        first=first,
        sections=[section for section in sections if section.parts],
        figures=list(figures),
        grids=grids,
    )


def _first_page(evidence: RunView, figures: Sequence[DrawnFigure]) -> FirstPage:
    return FirstPage(
        verdicts=verdicts(evidence),
        table=first_table(evidence),
        figure=next((f.name for f in figures if f.kind == TRADE_OFF), ""),
        findings=findings(evidence),
        sure=certainty(evidence),
        cost=cost_sentence(evidence),
        caveats=[*caveats(evidence), *reliability_caveats(evidence)],
    )


def _tables(tables: Iterable[ResultTable]) -> list[Part]:
    return [Part("table", table) for table in tables]


def _published(evidence: RunView) -> list[ResultTable]:
    """Return the published values, unless they stand in the results already."""
    found = None if is_by_point(evidence) else published_table(evidence)
    return [] if found is None else [found]


def _reliability(evidence: RunView) -> list[Part]:
    parts = []
    for block in reliability(evidence):
        parts.append(Part("heading", block.title))
        parts += [Part("text", sentence) for sentence in block.sentences]
        parts += _tables(block.tables)
    return parts


def _manifest(evidence: RunView) -> list[Part]:
    return [*_tables([accounting(evidence)]), Part("facts", manifest_facts(evidence))]


def _compared(evidence: RunView) -> str:
    """Say what was compared: methods, models, prompts, seeds, images."""
    n_methods = list(dict.fromkeys(truncate(row["method"], NAME_LENGTH) for row in evidence.rows))
    models = [truncate(model, NAME_LENGTH) for model in evidence.models]
    prompts = {int(row["prompt_index"]) for row in evidence.images}
    seeds = {int(row["seed"]) for row in evidence.images}
    named = (
        join_names(n_methods)
        if len(n_methods) <= NAMES_LISTED
        else pluralize(len(n_methods), "method")
    )
    on = join_names(models) if len(models) <= NAMES_LISTED else pluralize(len(models), "model")
    whose = "Every method that ran here" if evidence.section("image_sets") else "Every method"
    return (
        f"{named}, on {on}: {pluralize(len(prompts), 'prompt')} × {pluralize(len(seeds), 'seed')}, "
        f"{pluralize(len(evidence.images), 'image')} in all. {whose} was given the same "
        "prompts and seeds."
    )
