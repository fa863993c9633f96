"""The identity of a model changes with the files that are loaded, and is cheap to find again."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from autolora_eval._files import cache_folder, sha256_file
from autolora_eval.sources import identity as identity_module
from autolora_eval.sources.identity import identity, lora_identity, remembered_sha256
from autolora_eval.sources.lookup import miniature_folder
from autolora_eval.sources.model_source import Source

LOADED = [
    *("model_index.json", "scheduler/scheduler_config.json", "unet/config.json"),
    *("unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"),
    *("text_encoder/model.safetensors", "text_encoder_2/config.json"),
    *("tokenizer/tokenizer.json", "tokenizer_2/tokenizer_config.json"),
]


def source(folder: Path) -> Source:
    return Source("mine", "folder", str(folder))


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    return shutil.copytree(miniature_folder("sdxl"), tmp_path / "sdxl")


def test_files_that_are_not_loaded_do_not_change_the_identity(pipeline: Path) -> None:
    before = identity(source(pipeline))
    for name in (
        *("notes.txt", "single_file.safetensors", "samples/prompts.json", "unet/notes.txt"),
        *("unet/diffusion_pytorch_model.fp16.safetensors", "unet/flax_model.msgpack"),
        "text_encoder/model.fp16-00001-of-00002.safetensors",
    ):
        (pipeline / name).parent.mkdir(exist_ok=True)
        (pipeline / name).write_text("anything")
        assert identity(source(pipeline)) == before, name


def test_every_loaded_file_changes_the_identity_of_a_pipeline(pipeline: Path) -> None:
    seen = [identity(source(pipeline))]
    for name in LOADED:
        with (pipeline / name).open("a") as stream:
            stream.write("\n")
        found = identity(source(pipeline))
        assert found not in seen, name
        seen.append(found)


def test_the_weights_of_the_variant_count(pipeline: Path) -> None:
    half = pipeline / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    half.write_text("half")
    full, before = identity(source(pipeline)), identity(source(pipeline), "fp16")
    half.write_text("more")
    assert identity(source(pipeline)) == full
    assert identity(source(pipeline), "fp16") != before


def test_a_transformers_folder_is_its_configuration_weights_and_vocabulary(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "merges.txt", "chat_template.jinja"):
        (tmp_path / name).write_text(name)
    before = identity(source(tmp_path))
    (tmp_path / "notes.txt").write_text("bought on Tuesday")
    assert identity(source(tmp_path)) == before
    for name in ("config.json", "model.safetensors", "merges.txt", "chat_template.jinja"):
        changed = shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}-{name}"))
        (changed / name).write_text("changed")
        assert identity(source(changed)) != before


def test_a_single_file_is_its_content(tmp_path: Path) -> None:
    found = []
    for name, text in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / f"{name}.safetensors").write_text(text)
        found.append(identity(Source("mine", "file", str(tmp_path / f"{name}.safetensors"))))
    assert found[0] == found[1] != found[2]


def test_the_settings_of_peft_beside_a_lora_are_part_of_it(tmp_path: Path) -> None:
    """They may hold its alpha."""
    lora = Source("mine", "file", str(tmp_path / "adapter_model.safetensors"))
    lora.path.write_text("weights")
    found = [lora_identity(lora)]
    for alpha in (4, 8):
        (tmp_path / "adapter_config.json").write_text(f'{{"lora_alpha": {alpha}}}')
        found.append(lora_identity(lora))
    assert found[0] != found[1] != found[2]
    assert len({one["sha256"] for one in found}) == 1


def large_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is remembered, and that was written long ago."""
    monkeypatch.setattr(identity_module, "_REMEMBERED_BYTES", 4)
    monkeypatch.setattr(identity_module, "_SETTLED_NS", 0)
    path.write_text("weights")
    time.sleep(0.01)
    return path


def test_weights_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = large_file(tmp_path / "lora.safetensors", monkeypatch)
    lora = Source("mine", "file", str(file))
    digest = lora_identity(lora)["sha256"]
    assert digest == sha256_file(file)

    def fail(path: Path) -> str:
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr(identity_module, "sha256_file", fail)
    assert lora_identity(lora)["sha256"] == digest
    (note,) = (cache_folder() / "sha256").iterdir()
    note.write_text("torn")
    with pytest.raises(AssertionError, match="was read again"):
        remembered_sha256(file)


def test_changed_weights_are_read_again_also_at_the_old_time(tmp_path, monkeypatch) -> None:
    file = large_file(tmp_path / "model.safetensors", monkeypatch)
    before, stat = remembered_sha256(file), file.stat()
    file.write_text("changed")  # as many bytes
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert remembered_sha256(file) == sha256_file(file) != before


def test_a_file_that_was_just_written_is_not_remembered(tmp_path, monkeypatch) -> None:
    file = large_file(tmp_path / "model.safetensors", monkeypatch)
    monkeypatch.setattr(identity_module, "_SETTLED_NS", 60_000_000_000)
    assert remembered_sha256(file) == sha256_file(file)
    assert not (cache_folder() / "sha256").exists()


def test_without_a_cache_weights_are_hashed(tmp_path, monkeypatch) -> None:
    file = large_file(tmp_path / "model.safetensors", monkeypatch)
    monkeypatch.setenv("AUTOLORA_EVAL_CACHE", str(file))
    assert remembered_sha256(file) == sha256_file(file)
