"""The content of a report as plain data, and its PDF and HTML."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import matplotlib
import typst
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.ft2font import FT2Font

from autolora_eval._files import atomic_write, write_text
from autolora_eval._text import Sentences, truncate
from autolora_eval.analysis.table_layout import Table
from autolora_eval.report.caveats import caveats
from autolora_eval.report.cost_summary import cost_sentence, cost_table
from autolora_eval.report.figures._base import DrawnFigure
from autolora_eval.report.findings import (
    ComparisonSummary,
    certainty_sentences,
    findings,
    winner_sentences,
)
from autolora_eval.report.grids import Grids, image_grids
from autolora_eval.report.judge_reliability import reliability
from autolora_eval.report.provenance import manifest_facts, methods
from autolora_eval.report.report_tables import (
    accounting_table,
    difference_tables,
    first_table,
    published_tables,
    result_tables,
)
from autolora_eval.report.run_view import NAME_LENGTH, RunView

if TYPE_CHECKING:
    from autolora_eval.report.gallery import Gallery

# matplotlib's fonts, which the text of the figures uses.
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
# An id in an SVG or a reference to one: inside a tag, where the next angle bracket closes it.
_PART = re.compile(r'(\bid="|href="#|url\(#)(?=[^<>]*>)')
# matplotlib writes a path without data, which is invalid, for a line outside the axes.
_NOTHING = re.compile(r'<path (?![^<>]*\bd=")[^<>]*/>')


def write_html(content: Content, gallery: Gallery, path: Path) -> None:
    """Write the report as HTML, with images and figures inside."""
    environment = Environment(
        loader=PackageLoader("autolora_eval.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pictures = {name: thumbnail.uri for name, thumbnail in content.grids.thumbnails.items()}
    template = environment.get_template("report.html.j2")
    # matplotlib escapes its texts.
    drawn = {figure.name: Markup(_inline_svg(figure)) for figure in content.figures}
    page = template.render(
        content.as_data(),
        drawn=drawn,
        pictures=pictures,
        gallery=gallery,
        links=gallery.links,
        cell_links=gallery.cell_links,
        gallery_script=Markup(gallery.script),  # our own script, allowed by its hash
    )
    write_text(path, page)


def _inline_svg(figure: DrawnFigure) -> str:
    """Return the `<svg>` element of a figure, without the XML prolog that HTML does not allow.

    The ids of its parts get the figure's name as a prefix, since ids must be unique in a page.
    """
    document = figure.svg.read_text(encoding="utf-8")
    drawn = _NOTHING.sub("", document[document.index("<svg") :])
    return _PART.sub(rf"\g<1>{figure.name}-", drawn)


# ---- PDF, set by typst


def write_pdf(content: Content, path: Path) -> None:
    """Write the report as PDF.

    Everything a user wrote reaches typst as JSON, never as typst source.
    """
    with atomic_write(path) as temporary:
        _compile(content, temporary, format="pdf")


def write_page_images(content: Content, folder: Path) -> None:
    """Write the report's pages to a folder as `report-1.png`, `report-2.png`, …."""
    _compile(content, folder / "report-{p}.png", format="png", ppi=110.0)


def _compile(content: Content, output: Path, **options: Any) -> None:  # noqa: ANN401
    template = resources.files("autolora_eval.report") / "templates" / "report.typ"
    data = content.as_data()
    # Only this folder may be read by typst.
    with tempfile.TemporaryDirectory(prefix="autolora-eval-") as name:
        folder = Path(name)
        (folder / "report.typ").write_bytes(template.read_bytes())
        (folder / "data.json").write_text(json.dumps(data), encoding="utf-8")
        for figure in content.figures:
            shutil.copyfile(figure.svg, folder / f"{figure.name}.svg")
        for image, thumbnail in content.grids.thumbnails.items():
            (folder / image).write_bytes(thumbnail.data)
        typst.compile(
            str(folder / "report.typ"),
            output=str(output),
            root=name,
            font_paths=[str(FONTS)],
            ignore_system_fonts=own_fonts_suffice(json.dumps(data, ensure_ascii=False)),
            **options,
        )


def own_fonts_suffice(text: str) -> bool:
    """Return True if the fonts of the packages have every character of a text.

    If so, the PDF is the same on every machine. If not, as for prompts in Chinese, the machine's
    own fonts are better than empty boxes.
    """
    known = FT2Font(str(FONTS / "DejaVuSans.ttf")).get_charmap()
    return all(ord(character) in known or character.isspace() for character in set(text))


NAMES_LISTED = 8
TEXT_LENGTH = 2000
# Kind of the figure on the first page.
TRADE_OFF = "diversity_vs_scores"
say = Sentences("content")


@dataclass(frozen=True)
class FirstPage:
    """The first page: which method ranks first, by how much, how certain that is, and the caveats.

    `figure` is the name of the trade-off figure.
    """

    winners: list[ComparisonSummary]
    table: Table
    figure: str
    findings: list[ComparisonSummary]
    certainty: list[str]
    cost: str
    caveats: list[str]


Kind = Literal["heading", "text", "table", "figure", "grid", "method", "facts"]


@dataclass(frozen=True)
class Part:
    """A piece of a section: `value` is a text, a `Table`, a `Grid`, … depending on `kind`."""

    kind: Kind
    value: Any


@dataclass(frozen=True)
class Section:
    """A chapter of the report; its name identifies it in the templates."""

    name: str
    title: str
    parts: list[Part]


@dataclass(frozen=True)
class Content:
    """A report. All texts are sanitized and truncated; all numbers are texts."""

    title: str
    description: str
    compared: str
    version: str
    first: FirstPage
    sections: list[Section]
    figures: list[DrawnFigure]
    grids: Grids

    def as_data(self) -> dict[str, Any]:
        """Return everything but the images and figures as JSON types."""
        data = asdict(replace(self, grids=Grids([], {}), figures=[]))
        del data["grids"]
        data["figures"] = {
            figure.name: {
                "title": truncate(figure.title, NAME_LENGTH),
                "caption": truncate(figure.caption, TEXT_LENGTH),
                "text": truncate(figure.text, TEXT_LENGTH),
            }
            for figure in self.figures
        }
        return data


def build_content(view: RunView, figures: Sequence[DrawnFigure] = ()) -> Content:
    """Return the report of a run, with the trade-off figure on the first page."""
    grids = image_grids(view)
    first = FirstPage(
        winners=winner_sentences(view),
        table=first_table(view),
        figure=next((f.name for f in figures if f.kind == TRADE_OFF), ""),
        findings=findings(view),
        certainty=certainty_sentences(view),
        cost=cost_sentence(view),
        caveats=caveats(view),
    )
    inside = [figure.name for figure in figures if figure.name != first.figure]
    manifest = view.manifest
    return Content(
        title=truncate(manifest.benchmark.name, NAME_LENGTH),
        description=truncate(manifest.benchmark.description, TEXT_LENGTH),
        compared=_compared(view),
        version=manifest.autolora_eval_version,
        first=first,
        sections=[section for section in _sections(view, grids, inside) if section.parts],
        figures=list(figures),
        grids=grids,
    )


def _sections(view: RunView, grids: Grids, figures: Sequence[str]) -> list[Section]:
    provenance = [*_parts("table", [accounting_table(view)]), Part("facts", manifest_facts(view))]
    return [
        Section("results", "Results", _parts("table", result_tables(view))),
        Section(
            "differences", "Differences from the baseline", _parts("table", difference_tables(view))
        ),
        Section(
            "published",
            "Comparison with the published values",
            _parts("table", published_tables(view)),
        ),
        Section("figures", "Figures", _parts("figure", figures)),
        Section("images", "Images", _parts("grid", grids.grids)),
        Section("reliability", "Reliability of the judge", _reliability(view)),
        Section("cost", "Cost", _parts("table", [cost_table(view)])),
        Section("methods", "Methods and parameters", _parts("method", methods(view))),
        Section("manifest", "Provenance", provenance),
    ]


def _parts(kind: Kind, values: Iterable[object]) -> list[Part]:
    return [Part(kind, value) for value in values]


def _reliability(view: RunView) -> list[Part]:
    parts = []
    for answer in reliability(view):
        parts.append(Part("heading", answer.title))
        parts += _parts("text", answer.sentences) + _parts("table", answer.tables)
    return parts


def _compared(view: RunView) -> str:
    names = list(dict.fromkeys(truncate(row["method"], NAME_LENGTH) for row in view.rows))
    models = [truncate(model, NAME_LENGTH) for model in view.models]
    return say.compared(
        methods=names if len(names) <= NAMES_LISTED else [],
        n_methods=len(names),
        models=models if len(models) <= NAMES_LISTED else [],
        n_models=len(models),
        n_prompts=view.images["prompt_index"].nunique(),
        n_seeds=view.images["seed"].nunique(),
        n_images=len(view.images),
        imported=view.imported,
    )
