"""Put a run's report, its pages as pictures, table and figures into `reports/sample`.

`make sample` runs the quick start afresh and then this.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from autolora_eval.report import read_report
from autolora_eval.report.content import write_page_images
from autolora_eval.runs.folder import RunFolder

FILES = ("report.pdf", "table.md", "table.csv", "comparisons.csv", "manifest.json")


def main(run: Path, sample: Path) -> None:
    """Copy what is shown, and draw the report's pages.

    Args:
        run: a finished run folder.
        sample: the folder to fill; what was in it goes.
    """
    shutil.rmtree(sample, ignore_errors=True)
    sample.mkdir(parents=True)
    for name in FILES:
        shutil.copy(run / name, sample / name)
    content = read_report(RunFolder(run))
    for figure in content.figures:
        shutil.copy(figure.svg, sample / figure.svg.name)
        shutil.copy(figure.png, sample / figure.png.name)
    write_page_images(content, sample)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
