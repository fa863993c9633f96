"""How long the report of the paper's whole Table 1 takes: 48 cells of 512 images of 1024².

`make bench` prints it. What the machine is doing besides decides as much as the code does, so
that no test asserts it; the aim is 15 s for tables, figures, PDF and HTML on two cores.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from report.table1_run import write_table1_run


def main() -> None:
    """Write the run, then its report, and print the seconds of the latter."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=512)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--keep", type=Path, help="write the run folder here, and leave it there")
    stated = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="autolora-eval-bench-") as scratch:
        path = stated.keep or Path(scratch) / "run"
        start = time.perf_counter()
        folder = write_table1_run(path, stated.seeds, stated.size)
        print(f"the run, without its images' making: {time.perf_counter() - start:.1f} s")
        from autolora_eval.report import write_report

        start, cpu = time.perf_counter(), time.process_time()
        write_report(folder)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        print(f"report of {stated.seeds} × 48 images: {seconds:.1f} s, {cpu:.1f} s of processors")
        for file in (folder.report_pdf, folder.report_html):
            print(f"{file.name}: {file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
