"""Open every file of the run-folder contract, and say what was found. Fails on the first gap."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
from datasets import load_dataset
from PIL import Image
from pypdf import PdfReader
from safetensors.numpy import load_file


def main(path: Path) -> None:
    """Open everything below a run folder.

    Args:
        path: the run folder.
    """
    manifest = json.loads((path / "manifest.json").read_text())
    table = pd.read_parquet(path / "table.parquet")
    scores = pd.read_parquet(path / "scores.parquet")
    assert len(table) == len(pd.read_csv(path / "table.csv")) == len(manifest["cells"])
    assert (path / "table.md").read_text().count("\n") == len(table) + 2
    assert r"\toprule" in (path / "table.tex").read_text()
    images = len(manifest["prompts"]) * len(manifest["seeds"])
    assert len(scores) == images * len(table)
    for cell in table["cell"]:
        dataset = load_dataset("imagefolder", data_dir=str(path / "images" / cell), split="train")
        assert len(dataset) == images, cell
        features = load_file(path / "features" / f"{cell}.safetensors")["features"]
        assert features.shape[0] == images, cell
        lines = (path / "judgements" / f"{cell}.jsonl").read_text().splitlines()
        assert len([json.loads(line) for line in lines]) == images, cell
    for name in ("comparisons", "diversity", "reliability", "timings", "unscored"):
        pd.read_csv(path / f"{name}.csv")
    for figure in (path / "figures").glob("*.svg"):
        ElementTree.parse(figure)
        with Image.open(figure.with_suffix(".png")) as image:
            image.verify()
    pages = PdfReader(path / "report.pdf").pages
    assert "<html" in (path / "report.html").read_text()
    unscored = int(scores["unscored_reason"].notna().sum())
    print(f"{path}: {len(table)} cells, {len(scores)} images, {unscored} unscored, ", end="")
    print(f"{len(pages)} pages")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
