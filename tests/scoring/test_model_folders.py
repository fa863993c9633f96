"""Model folders of others: code in them is never run, and damage is said with its cause."""

from __future__ import annotations

import builtins
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rubrics import shipped

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval.scoring.extractor import EXTRACTORS, Loading
from autolora_eval.scoring.judges.config import JudgeConfig
from autolora_eval.scoring.judges.transformers_judge import TransformersJudge
from autolora_eval.sources.lookup import miniature_folder
from autolora_eval.sources.model_source import Source

pytestmark = pytest.mark.model

CPU = torch.device("cpu")


def load_extractor(folder: Path) -> None:
    kind = EXTRACTORS.find("transformers")
    source = Source("mine", "folder", str(folder))
    kind.load(Loading(source, kind.parameters(), CPU, torch.float32, 1))


def load_judge(folder: Path) -> None:
    spec = JudgeConfig(rubric="r", model="mine", backend="transformers")
    judge = TransformersJudge(
        spec, Source("mine", "folder", str(folder)), CPU, shipped("pixel_art")
    )
    judge.identity()
    judge._load()


KINDS = pytest.mark.parametrize(
    ("what", "miniature", "load"),
    [("extractor", "dinov2", load_extractor), ("judge", "judge", load_judge)],
)


@KINDS
def test_code_in_a_model_folder_is_never_run_and_the_user_is_not_asked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    miniature: str,
    load: Callable[[Path], None],
) -> None:
    def ask(question: str) -> str:
        raise AssertionError(question)

    monkeypatch.setattr(builtins, "input", ask)
    folder, ran = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(miniature_folder(miniature), folder)
    (folder / "theirs.py").write_text(f"open({str(ran)!r}, 'w')\n")
    # Which file names the code differs: every one may.
    classes = ("AutoConfig", "AutoModel", "AutoProcessor", "AutoTokenizer", "AutoImageProcessor")
    theirs = dict.fromkeys((*classes, "AutoModelForImageTextToText"), "theirs.Theirs")
    for file in folder.glob("*config.json"):
        config = json.loads(file.read_text())
        config |= {"model_type": "theirs", "auto_map": theirs}
        file.write_text(json.dumps(config))
    with pytest.raises(AutoLoRAEvalError) as caught:
        load(folder)
    assert str(caught.value) == (
        f"the {what} 'mine' cannot be loaded: it needs Python code from its own folder, which is "
        "never run. Use a model whose class is part of transformers."
    )
    assert not ran.exists()


@KINDS
def test_cut_weights_are_reported_with_model_and_cause(tmp_path, what, miniature, load) -> None:
    folder = tmp_path / "model"
    shutil.copytree(miniature_folder(miniature), folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(AutoLoRAEvalError, match="damaged or incomplete") as caught:
        load(folder)
    assert str(caught.value).startswith(f"the {what} 'mine' cannot be loaded: its .safetensors")
