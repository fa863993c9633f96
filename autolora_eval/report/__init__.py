"""The report of a run, as PDF and as one HTML file, from nothing but the files of its folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autolora_eval.run_folder import RunFolder


def write_report(folder: RunFolder) -> None:
    """Write `figures/`, `report.pdf` and `report.html` of a finished run.

    The same files give the same bytes: nothing in a report says when it was written.

    Args:
        folder: the run folder; it must have got as far as its tables.

    Raises:
        UsageError: it is no run folder, or has no table yet.
    """
    from autolora_eval.analysis.figures import write_figure
    from autolora_eval.report.content import build_content
    from autolora_eval.report.evidence import read_evidence
    from autolora_eval.report.html import write_html
    from autolora_eval.report.pdf import write_pdf

    evidence = read_evidence(folder)
    svg, _ = write_figure(evidence.run.table, evidence.measured, folder.figures, evidence.points)
    content = build_content(evidence)
    write_pdf(content, svg, folder.report_pdf)
    write_html(content, svg, folder.report_html)
