"""An archive of a run: the same bytes each time, checked to the last one, and read by others."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import datasets
import pytest
from command import run_command

from autolora_eval.analysis.archive import pack, verify_archive
from autolora_eval.config.plan import Plan
from autolora_eval.runs.folder import RunFolder
from autolora_eval.sources.lookup import miniature_folder
from autolora_eval.sources.model_source import Source, stated_license


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
