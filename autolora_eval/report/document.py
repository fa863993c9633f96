"""The report as one HTML file that asks nothing of any other."""

from __future__ import annotations

import base64
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


# Where an SVG names a part or refers to one: inside a tag, where the next angle bracket closes.
_PART = re.compile(r'(\bid="|href="#|url\(#)(?=[^<>]*>)')
# What matplotlib leaves of a line that lies outside the axes: no path, and no valid SVG.
_NOTHING = re.compile(r'<path (?![^<>]*\bd=")[^<>]*/>')


def write_html(content: Content, gallery: Gallery, path: Path) -> None:
    """Write the report as HTML, with pictures and figures inside.

    Args:
        content: what it says.
        gallery: its images.
        path: where to write.
    """
    environment = Environment(
        loader=PackageLoader("autolora_eval.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pictures = {name: data_uri(name, data) for name, data in content.grids.thumbnails.items()}
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


def data_uri(name: str, data: bytes) -> str:
    """Return an image as the address of itself."""
    kind = "jpeg" if name.endswith(".jpg") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def inline_svg(document: str, name: str) -> str:
    """Return the `<svg>` element of a file, without the XML prolog that HTML does not know.

    Its parts are named after the figure: two figures of one page may not share a part's name.

    Args:
        document: the file's text.
        name: of the figure.
    """
    drawn = _NOTHING.sub("", document[document.index("<svg") :])
    return _PART.sub(rf"\g<1>{name}-", drawn)


# --------------------
# The report as PDF, set by typst.


def write_pdf(content: Content, path: Path) -> None:
    """Write the report as PDF.

    Everything a user wrote reaches typst as JSON, never as typst source.

    Args:
        content: what it says.
        path: where to write.
    """
    with atomic_write(path) as temporary:
        _compile(content, temporary, format="pdf")


def write_page_images(content: Content, folder: Path) -> None:
    """Write the report's pages as `report-1.png`, `report-2.png`, ….

    Args:
        content: what it says.
        folder: where to write.
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
    """Put the template, the data and the pictures where typst may read them."""
    template = resources.files("autolora_eval.report") / "templates" / "report.typ"
    document = folder / "report.typ"
    document.write_bytes(template.read_bytes())
    (folder / "data.json").write_text(json.dumps(content.as_data()), encoding="utf-8")
    for figure in content.figures:
        shutil.copyfile(figure.svg, folder / f"{figure.name}.svg")
    for name, data in content.grids.thumbnails.items():
        (folder / name).write_bytes(data)
    return document


def _fonts() -> Path:
    """Return the folder of the fonts that matplotlib brings: those of the figure's text."""
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def own_fonts_suffice(text: str) -> bool:
    """Tell whether the fonts that come with the packages have every character of a text.

    Where they do, the PDF is the same on every machine; where they do not, as for prompts in
    Chinese, the machine's own fonts are better than empty boxes.
    """
    known = FT2Font(str(_fonts() / "DejaVuSans.ttf")).get_charmap()
    return all(ord(character) in known or character.isspace() for character in set(text))
