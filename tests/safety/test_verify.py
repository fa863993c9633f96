"""Runs and their archives from elsewhere: content is checked, and names cannot lead out."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import datasets
import pandas as pd
import pytest
from command import run_command
from json_lines import read_jsonl
from safetensors import safe_open
from safetensors.numpy import save_file
from scored_run import tables

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._files import write_jsonl
from autolora_eval.analysis.archive import pack, verify_archive
from autolora_eval.analysis.compare_runs import join_runs
from autolora_eval.config.plan import Plan
from autolora_eval.runs.feature_file import read_features
from autolora_eval.runs.folder import RunFolder
from autolora_eval.sources.lookup import miniature_folder
from autolora_eval.sources.model_source import Source, stated_license


def test_scores_are_those_of_the_reply_and_not_of_the_copy_beside_it(plan, folder) -> None:
    before = pd.read_parquet(folder.scores)
    for cell in plan.cells:
        rows = read_jsonl(folder.judgements(cell.id))
        for row in rows:
            row["scores"] = {"pc": 5.0}
        write_jsonl(folder.judgements(cell.id), rows)
    tables(plan, folder)
    assert pd.read_parquet(folder.scores)["pc"].equals(before["pc"])
    printed = run_command("verify", folder.path)
    assert printed.code == 1
    assert "are not those of the reply" in printed.stdout


def test_features_that_were_changed_are_refused(plan: Plan, folder: RunFolder) -> None:
    file = folder.features(plan.cells[0].id)
    with safe_open(file, framework="np") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    tensors["features"][0] = 0.0
    save_file(tensors, file)
    with pytest.raises(
        AutoLoRAEvalError, match=r"Cannot read features .* do not match its checksum"
    ):
        read_features(file)


@pytest.mark.parametrize("name", ["scores.parquet", "table.csv", "comparisons.csv", "timings.csv"])
def test_report_explain_and_compare_refuse_an_edited_table(plan, folder, name) -> None:
    with (folder.path / name).open("ab") as stream:
        stream.write(b" ")
    says = f"{name} was changed after scoring. Write the tables again with: autolora-eval score"
    for command in (("report", folder.path), ("explain", folder.path, plan.cells[0].id)):
        failed = run_command(*command)
        assert (failed.code, says in failed.stderr) == (2, True)
    other = folder.path.with_name("other")
    shutil.copytree(folder.path, other)
    with pytest.raises(AutoLoRAEvalError, match=name):
        join_runs([folder.path, other], folder.path.with_name("joint"), lambda _: None)


# A file, its new content (None: it is removed), and what is said of it.
CHANGES = [
    ("table.tex", "1000 %", "changed: table.tex (after the tables were written)"),
    ("images/{image}", None, "missing: images/{image}"),
    ("images/{image}", "another", "changed: images/{image} (changed_image)"),
    ("images/{cell}/more.png", "more", "extra: images/{cell}/more.png"),
    ("features/{cell}.safetensors", None, "missing: features/{cell}.safetensors"),
    ("theirs.py", "", "extra: theirs.py"),
]


@pytest.mark.parametrize(("file", "content", "says"), CHANGES)
def test_verify_says_what_is_missing_changed_or_extra(plan, folder, file, content, says) -> None:
    cell = plan.cells[0].id
    names = {"cell": cell, "image": f"{cell}/{plan.jobs[0].file}"}
    path = folder.path / file.format(**names)
    path.unlink() if content is None else path.write_text(content)
    done = run_command("verify", folder.path)
    assert (done.code, done.stdout) == (1, f"{says.format(**names)}\n")


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    failed = run_command("verify", tmp_path)
    assert (failed.code, "is not a run folder" in failed.stderr) == (2, True)


@pytest.fixture
def archive(folder: RunFolder) -> Path:
    return pack(folder.path)


@pytest.fixture
def unpacked(archive: Path, tmp_path: Path) -> Path:
    with ZipFile(archive) as opened:
        opened.extractall(tmp_path / "unpacked")
    return tmp_path / "unpacked"


def test_an_archive_is_verified_and_packs_to_the_same_bytes(folder, archive, unpacked) -> None:
    (folder.path / "theirs.txt").write_text("not of the run")
    packed = run_command("pack", folder.path, "--output", archive.with_name("again.zip"))
    assert (packed.code, packed.stdout) == (0, f"archive: {archive.with_name('again.zip')}\n")
    assert archive.with_name("again.zip").read_bytes() == archive.read_bytes()
    assert pack(unpacked).read_bytes() == archive.read_bytes()
    for run in (archive, unpacked):
        done = run_command("verify", run)
        assert (done.code, done.stdout) == (0, f"verified: {run}\n")
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=unpacked, check=True)


@pytest.mark.parametrize("name", ["table.csv", "README.md", "manifest.json", "SHA256SUMS"])
def test_a_changed_byte_is_found_by_the_name_of_its_file(archive: Path, name: str) -> None:
    with ZipFile(archive) as opened:
        content = opened.read(name)
    data = archive.read_bytes()
    assert data.count(content) == 1
    at = data.index(content) + len(content) // 2
    archive.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    found = run_command("verify", archive)
    assert (found.code, found.stdout.split(" (")[0]) == (1, f"changed: {name}")


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("missing", lambda files: files.pop("table.csv")),
        ("changed", lambda files: files.update({"table.csv": b"1000 %"})),
        ("extra", lambda files: files.update({"more.csv": b"1000 %"})),
    ],
)
def test_missing_changed_and_extra_files_are_found(archive, kind, change) -> None:
    with ZipFile(archive) as opened:
        files = {entry.filename: opened.read(entry) for entry in opened.infolist()}
    change(files)
    with ZipFile(archive, "w") as made:
        for name, data in files.items():
            made.writestr(name, data)
    found = [(finding.kind, finding.file) for finding in verify_archive(archive)]
    assert found == [(kind, "more.csv" if kind == "extra" else "table.csv")]


def link(name: str) -> ZipInfo:
    entry = ZipInfo(name)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (ZipInfo("../mine.png"), "points outside"),
        (ZipInfo("a/../../mine.png"), "points outside"),
        (ZipInfo("/tmp/mine.png"), "points outside"),
        (ZipInfo("C:\\mine.png"), "points outside"),
        (ZipInfo("manifest.json/a"), "another entry has its name"),
        (link("images"), "it is not a regular file"),
    ],
)
def test_an_archive_that_leads_out_is_refused_and_nothing_is_unpacked(
    archive: Path, outside: Path, entry: ZipInfo, problem: str
) -> None:
    with ZipFile(archive, "a") as opened:
        opened.writestr(entry, b"theirs")
    before = sorted(path for path in archive.parent.rglob("*"))
    refused = run_command("verify", archive)
    assert (refused.code, problem in refused.stderr) == (2, True)
    assert sorted(path for path in archive.parent.rglob("*")) == before
    assert (outside / "mine.png").read_bytes() == b"my picture"


def test_an_archive_cannot_grow(archive: Path) -> None:
    with ZipFile(archive, "a", ZIP_DEFLATED) as opened:
        opened.writestr("zeros", bytes(10_000_000))
    refused = run_command("verify", archive)
    assert (refused.code, "'zeros': it is compressed" in refused.stderr) == (2, True)


def test_a_run_that_is_not_as_its_records_say_is_not_packed(plan: Plan, folder: RunFolder) -> None:
    folder.table("csv").write_text("1000 %")
    refused = run_command("pack", folder.path)
    assert (refused.code, "cannot be packed: changed: table.csv" in refused.stderr) == (2, True)
    assert not folder.path.with_suffix(".zip").exists()


def test_an_archive_has_the_whole_name_of_its_run(folder: RunFolder) -> None:
    run = folder.path.rename(folder.path.with_name("sdxl-1.0"))
    assert pack(run) == run.with_name("sdxl-1.0.zip").resolve()


def test_a_folder_is_refused_as_an_archive(folder: RunFolder) -> None:
    refused = run_command("pack", folder.path, "--output", folder.path.parent)
    assert (refused.code, "is a folder. Name the archive" in refused.stderr) == (2, True)


def test_datasets_reads_the_images(plan: Plan, folder: RunFolder, unpacked: Path) -> None:
    for arguments in (("imagefolder", None, str(unpacked)), (str(unpacked),)):
        read = datasets.load_dataset(*arguments, cache_dir=str(unpacked.parent / "cache"))
        assert list(read) == ["train"]
        assert len(read["train"]) == len(plan.cells) * len(plan.jobs)
        assert set(read["train"]["prompt"]) == {job.prompt for job in plan.jobs}
        assert read["train"][0]["image"].size == (16, 16)


def test_the_card_has_the_licences_that_are_known(plan: Plan, folder: RunFolder) -> None:
    folder.update_manifest(licenses={"lora": "apache-2.0"})
    with ZipFile(pack(folder.path)) as opened:
        card = opened.read("README.md").decode()
    assert "| LoRA | lora | apache-2.0 | 2222" in card
    assert "| pipeline | pipeline | unknown | 1111" in card
    assert "| prompts | prompts.txt | unknown |" in card


def test_the_licence_is_that_of_the_model_card(tmp_path: Path) -> None:
    miniature = miniature_folder("sdxl")
    assert stated_license(Source("sdxl", "folder", str(miniature))) == "apache-2.0"
    lora = tmp_path / "a.safetensors"
    for card in ("", "---\nlicense: mit\n---\n", "---\nlicense: [\n---\n"):
        (tmp_path / "README.md").write_text(card)
        given = "mit" if "mit" in card else None
        lora.touch()
        assert stated_license(Source("lora", "file", str(lora))) == given
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "b.safetensors").touch()
    assert stated_license(Source("lora", "file", str(lora))) is None
    assert stated_license(Source("owner/name", "hub", "owner/name")) is None
