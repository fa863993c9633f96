"""The report of a run as PDF and as one HTML file, made from the files of the run folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autolora_eval import __version__
from autolora_eval._files import content_hash, sha256_file
from autolora_eval.runs.folder import manifest_key

if TYPE_CHECKING:
    from autolora_eval.report.content import Content
    from autolora_eval.report.run_view import RunView
    from autolora_eval.runs.folder import RunFolder


def write_report(folder: RunFolder) -> None:
    """Write `figures/`, `report.pdf` and `report.html` of a finished run.

    The same files give the same bytes: a report has no date.

    Raises:
        UsageError: It is not a run folder, or it has no table yet.
    """
    from autolora_eval.report.content import write_html, write_pdf
    from autolora_eval.report.gallery import build_gallery
    from autolora_eval.report.run_view import read_run_view

    view = read_run_view(folder)
    content = _content(view)
    write_pdf(content, folder.report_pdf)
    write_html(content, build_gallery(view), folder.report_html)
    folder.update_manifest(report_key=_report_key(folder))


def is_report_current(folder: RunFolder) -> bool:
    """Return True if the report was drawn from the files that are in the run folder now."""
    manifest = folder.find_manifest()
    drawn = folder.report_pdf.is_file() and folder.report_html.is_file()
    return drawn and manifest is not None and manifest.report_key == _report_key(folder)


def _report_key(folder: RunFolder) -> str:
    """Return the content hash of all files that a report is drawn from.

    An image is covered by the hash in its row of `metadata.jsonl`.
    """
    below = ("images/*/metadata.jsonl", "judgements/*", "image_sets/*", "failed_images/*", "*.csv")
    files = [folder.scores, *(file for pattern in below for file in folder.path.glob(pattern))]
    hashes = {file.relative_to(folder.path).as_posix(): sha256_file(file) for file in files}
    return content_hash([__version__, manifest_key(folder.read_manifest()), hashes])


def read_report(folder: RunFolder) -> Content:
    """Draw the figures of a finished run, and return the content of its report.

    Raises:
        UsageError: It is not a run folder, or it has no table yet.
    """
    from autolora_eval.report.run_view import read_run_view

    return _content(read_run_view(folder))


def _content(view: RunView) -> Content:
    from autolora_eval.report.content import build_content
    from autolora_eval.report.figures._base import draw_figures
    from autolora_eval.report.grids import write_grids

    figures = draw_figures(view.figure_data, view.run.folder.figures)
    content = build_content(view, figures)
    write_grids(content.grids, view.run.folder.figures)
    return content
