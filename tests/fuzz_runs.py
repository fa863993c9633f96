"""Run folders and archives of someone else: how cases are made, and what reads them."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pandas as pd
from conftest import benchmark_content, furnish
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from mutations import TEXTS, Input, as_json, as_jsonl, as_yaml, damaged, mutated
from scored_run import accept_tables, scored

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._files import sha256_bytes
from autolora_eval.analysis.archive import pack, verify, verify_archive
from autolora_eval.analysis.explain import explain
from autolora_eval.analysis.tables import write_tables
from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import make_plan
from autolora_eval.runs.folder import RunFolder

# ---- Run folders

RUN_FILES: dict[str, bytes] = {}
ARCHIVE: list[bytes] = []


def prepare_run(place: Path) -> None:
    """Make a scored run, and keep its files."""
    furnish(place)
    file = place / "bench.yaml"
    few = {"prompts": ["a cat", "a dog"], "seeds": {"start": 3, "count": 2}}
    file.write_text(as_yaml(benchmark_content() | few))
    folder = scored(make_plan(load_benchmark(file)), RunFolder(place / "run")).path
    for path in folder.rglob("*"):
        if path.is_file():
            RUN_FILES[path.relative_to(folder).as_posix()] = path.read_bytes()


def with_manifest(**sections: Any) -> tuple[dict[str, Any], bool]:
    """Return the change of a run whose manifest has other sections."""

    def change(data: bytes) -> bytes:
        return json.dumps(json.loads(data) | sections).encode()

    return {"manifest.json": change}, False


@st.composite
def run_files(draw: DrawFn) -> tuple[dict[str, bytes], bool]:
    """Make one or two files of a run that are not as they were, and whether it is hidden.

    The checksums of tables in the manifest hide nothing from those who write them anew.
    """
    found = {}
    for name in draw(st.lists(st.sampled_from(sorted(RUN_FILES)), min_size=1, max_size=2)):
        data = RUN_FILES[name]
        if name.endswith(".json") and draw(st.integers(0, 3)):
            data = as_json(draw(mutated(json.loads(data)))).encode()
        elif name.endswith(".jsonl") and draw(st.integers(0, 3)):
            rows = draw(mutated([json.loads(line) for line in data.splitlines()]))
            data = as_jsonl(rows).encode()
        elif name.endswith(".parquet") and draw(st.integers(0, 3)):
            data = other_table(draw, data)
        else:
            data = draw(damaged([data]))
        found[name] = data
    return found, draw(st.booleans())


def other_table(draw: DrawFn, data: bytes) -> bytes:
    """Return a table with a column that is missing, of another type, or without values."""
    frame = pd.read_parquet(io.BytesIO(data))
    column = draw(st.sampled_from(list(frame)))
    what = draw(st.integers(0, 3))
    if what == 0:
        frame = frame.drop(columns=column)
    elif what == 1:
        frame[column] = draw(st.sampled_from(("x", 1.5, None, -1, "../../../mine.png")))
    elif what == 2:
        frame = frame.iloc[: draw(st.integers(0, len(frame)))]
    else:
        frame = pd.concat([frame, frame])
    stream = io.BytesIO()
    frame.to_parquet(stream)
    return stream.getvalue()


# Once exceptions without a file name. A function makes a file's content of what it was.
NOT_RUNS = (
    *(with_manifest(seeds=[2**70]), with_manifest(prompts=["\ud800"]), with_manifest(cells=[])),
    *(with_manifest(models={}), with_manifest(rubric={"name": "r", "scores": {}, "text": "x"})),
    ({"manifest.json": b"[" * 100_000}, False),
    ({"diversity.csv": b"\xff"}, True),
    ({"table.parquet": b"PAR1"}, True),
    ({"judgements/A--CFG.jsonl": b'{"image_id": [], "sha256": 1, "repeat": 1e999}\n'}, False),
)


def use_run(place: Path, changes: tuple[dict[str, Any], bool]) -> None:
    files, is_hidden = changes
    path = place / "run"
    shutil.rmtree(path, ignore_errors=True)
    for name, data in (RUN_FILES | files).items():
        data = data(RUN_FILES[name]) if callable(data) else data
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    folder, first = RunFolder(path), None

    def hide() -> None:
        if is_hidden:
            accept_tables(folder)

    def tables() -> None:
        manifest = folder.read_manifest()
        if not manifest.diversity_metrics:  # those are code, and not of the folder
            write_tables(manifest, folder)

    cell = "A--CFG"
    for use in (
        hide,
        lambda: explain(path, cell),
        lambda: explain(path, cell, 0),
        lambda: explain(path, cell, 0, 3),
        lambda: verify(path),
        tables,
    ):
        try:
            use()
        except AutoLoRAEvalError as error:
            first = first or error
    if first is not None:
        raise first


# ---- Archives


def prepare_archive(place: Path) -> None:
    prepare_run(place)
    ARCHIVE.append(pack(place / "run").read_bytes())


@st.composite
def archives(draw: DrawFn) -> bytes:
    """Make an archive that is damaged, or one of a changed run whose hashes are right."""
    if draw(st.booleans()):
        return draw(damaged(ARCHIVE))
    files = RUN_FILES | draw(run_files())[0]
    files[draw(st.sampled_from((*TEXTS[1:-1], "a\\b", "C:x", "table.csv/x")))] = b"theirs"
    sums = "".join(f"{sha256_bytes(data)}  {name}\n" for name, data in files.items())
    files["SHA256SUMS"] = sums.encode(errors="surrogatepass")
    stream = io.BytesIO()
    with ZipFile(stream, "w") as archive:
        for name, data in files.items():
            if (
                name.strip("\0")
                and "\ud800" not in name
                and (draw(st.booleans()) or name in RUN_FILES)
            ):
                archive.writestr(name, data)
    return stream.getvalue()


def use_archive(place: Path, data: bytes) -> None:
    (place / "run.zip").write_bytes(data)
    verify_archive(place / "run.zip")


RUNS = (
    Input("archives", st.deferred(archives), use_archive, prepare=prepare_archive),
    Input("runs", st.deferred(run_files), use_run, examples=NOT_RUNS, prepare=prepare_run),
)
