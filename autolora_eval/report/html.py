"""The report as one HTML file that asks nothing of any other."""

from __future__ import annotations

import base64
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from autolora_eval.files import write_text
from autolora_eval.report.content import Content


def write_html(content: Content, figure: Path, path: Path) -> None:
    """Write the report as HTML, with pictures and figure inside.

    Args:
        content: what it says.
        figure: the figure, SVG.
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
    svg = Markup(inline_svg(figure.read_text(encoding="utf-8")))  # matplotlib escapes its texts
    write_text(path, template.render(content.as_data(), figure=svg, pictures=pictures))


def data_uri(name: str, data: bytes) -> str:
    """Return an image as the address of itself."""
    kind = "jpeg" if name.endswith(".jpg") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def inline_svg(document: str) -> str:
    """Return the `<svg>` element of a file, without the XML prolog that HTML does not know."""
    return document[document.index("<svg") :]
