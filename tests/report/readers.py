"""Independent readers of what a report wrote, and of its content before anything is drawn."""

import dataclasses
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

from pypdf import PdfReader
from report.synthetic_run import Tables

from autolora_eval.report import write_report
from autolora_eval.report.content import Content, build_content, write_html, write_pdf
from autolora_eval.report.gallery import Gallery, build_gallery
from autolora_eval.report.run_view import read_run_view
from autolora_eval.runs.folder import RunFolder


class Page(HTMLParser):
    """An HTML report, taken apart by an independent reader."""

    VOID = frozenset({"meta", "img", "br", "input"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def pdf_text(folder: RunFolder) -> str:
    """Return the text of the PDF as one line, without its invisible places to break."""
    return " ".join(pdf_pages(folder))


def pdf_pages(folder: RunFolder) -> list[str]:
    """Return the text of each page of the PDF as one line."""
    pages = PdfReader(folder.report_pdf).pages
    return [" ".join(page.extract_text().replace("\u200b", "").split()) for page in pages]


def page(folder: RunFolder) -> Page:
    """Return the HTML report but for its gallery, which has tests of its own."""
    return Page(in_two(folder)[0])


def gallery_page(folder: RunFolder) -> Page:
    return Page(in_two(folder)[1])


def in_two(folder: RunFolder) -> tuple[str, str]:
    """Return the HTML report without its gallery, and the gallery."""
    source = folder.report_html.read_text(encoding="utf-8")
    start = source.index('<section id="gallery"')
    end = source.index("</section>", start) + len("</section>")
    return source[:start] + source[end:], source[start:end]


def reported(tables: Tables, path: Path) -> RunFolder:
    folder = tables.write(path)
    write_report(folder)
    return folder


def write_undrawn(folder: RunFolder) -> RunFolder:
    """Write both reports without figures, which take longer than all else."""
    content = content_of(folder)
    write_pdf(content, folder.report_pdf)
    write_html(content, gallery_of(folder), folder.report_html)
    return folder


def svg_texts(folder: RunFolder) -> list[str]:
    root = ElementTree.parse(folder.figures / "diversity_vs_scores.svg").getroot()
    return [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]


def content_of(folder: RunFolder) -> Content:
    """Return all that a report says, without drawing it."""
    return build_content(read_run_view(folder))


def gallery_of(folder: RunFolder) -> Gallery:
    return build_gallery(read_run_view(folder))


def first_page_text(folder: RunFolder) -> str:
    """Return the first page's text without drawing it."""
    content = content_of(folder)
    return text_of([content.title, content.description, content.compared, content.first])


def text_of(value: object) -> str:
    """Return all texts in a dataclass, list or mapping as one line."""
    if dataclasses.is_dataclass(value):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return " ".join(filter(None, map(text_of, value)))
    return value if isinstance(value, str) else ""
