"""Writes the report as one self-contained HTML file and as PDF."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import typst
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.ft2font import FT2Font

from autolora_eval._files import atomic_write, write_text
from autolora_eval.report.content import Content

if TYPE_CHECKING:
    from autolora_eval.report.gallery import Gallery


# An id in an SVG or a reference to one: inside a tag, where the next angle bracket closes it.
_PART = re.compile(r'(\bid="|href="#|url\(#)(?=[^<>]*>)')
# matplotlib writes a path without data, which is invalid, for a line outside the axes.
_NOTHING = re.compile(r'<path (?![^<>]*\bd=")[^<>]*/>')


def write_html(content: Content, gallery: Gallery, path: Path) -> None:
    """Write the report as HTML, with images and figures inside.

    Args:
        content: What it says.
        gallery: Its images.
        path: The file to write.
    """
    environment = Environment(
        loader=PackageLoader("autolora_eval.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pictures = {name: thumbnail.uri for name, thumbnail in content.grids.thumbnails.items()}
    template = environment.get_template("report.html.j2")
    drawn = {
        # matplotlib escapes its texts
        figure.name: Markup(inline_svg(figure.svg.read_text(encoding="utf-8"), figure.name))
        for figure in content.figures
    }
    page = template.render(
        content.as_data(),
        drawn=drawn,
        pictures=pictures,
        gallery=gallery,
        links=gallery.links,
        cell_links=gallery.cell_links,
        gallery_script=Markup(gallery.script),  # our own, and let run by its hash alone
    )
    write_text(path, page)


def inline_svg(document: str, name: str) -> str:
    """Return the `<svg>` element of a file, without the XML prolog that HTML does not allow.

    The ids of its parts get the figure's name as a prefix, since ids must be unique in a page.

    Args:
        document: The file's text.
        name: Name of the figure.
    """
    drawn = _NOTHING.sub("", document[document.index("<svg") :])
    return _PART.sub(rf"\g<1>{name}-", drawn)


# ---- PDF, set by typst


def write_pdf(content: Content, path: Path) -> None:
    """Write the report as PDF.

    Everything a user wrote reaches typst as JSON, never as typst source.

    Args:
        content: What it says.
        path: The file to write.
    """
    with atomic_write(path) as temporary:
        _compile(content, temporary, format="pdf")


def write_page_images(content: Content, folder: Path) -> None:
    """Write the report's pages as `report-1.png`, `report-2.png`, ….

    Args:
        content: What it says.
        folder: The folder to write to.
    """
    _compile(content, folder / "report-{p}.png", format="png", ppi=110.0)


def _compile(content: Content, output: Path, **options: Any) -> None:  # noqa: ANN401
    with tempfile.TemporaryDirectory(prefix="autolora-eval-") as name:
        document = _lay_out(content, Path(name))
        text = json.dumps(content.as_data(), ensure_ascii=False)
        typst.compile(
            str(document),
            output=str(output),
            root=name,
            font_paths=[str(_fonts())],
            ignore_system_fonts=own_fonts_suffice(text),
            **options,
        )


def _lay_out(content: Content, folder: Path) -> Path:
    """Write the template, the data and the images to the folder that typst may read."""
    template = resources.files("autolora_eval.report") / "templates" / "report.typ"
    document = folder / "report.typ"
    document.write_bytes(template.read_bytes())
    (folder / "data.json").write_text(json.dumps(content.as_data()), encoding="utf-8")
    for figure in content.figures:
        shutil.copyfile(figure.svg, folder / f"{figure.name}.svg")
    for name, thumbnail in content.grids.thumbnails.items():
        (folder / name).write_bytes(thumbnail.data)
    return document


def _fonts() -> Path:
    """Return the folder of matplotlib's fonts, which the text of the figures uses."""
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def own_fonts_suffice(text: str) -> bool:
    """Return True if the fonts of the packages have every character of a text.

    If so, the PDF is the same on every machine. If not, as for prompts in Chinese, the machine's
    own fonts are better than empty boxes.
    """
    known = FT2Font(str(_fonts() / "DejaVuSans.ttf")).get_charmap()
    return all(ord(character) in known or character.isspace() for character in set(text))
