"""The report as one HTML file that asks nothing of any other."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from autolora_eval.files import write_text
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
