"""The report as PDF, set by typst."""

from __future__ import annotations

import json
import shutil
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import matplotlib
import typst
from matplotlib.ft2font import FT2Font

from autolora_eval.files import written_whole
from autolora_eval.report.content import Content


def write_pdf(content: Content, path: Path) -> None:
    """Write the report as PDF.

    Everything a user wrote reaches typst as JSON, never as typst source.

    Args:
        content: what it says.
        path: where to write.
    """
    with written_whole(path) as temporary:
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
