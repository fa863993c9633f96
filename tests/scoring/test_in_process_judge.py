"""The judge in this process: the same reply alone and in a batch, and a reason where none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from scored_run import picture

from autolora_eval.benchmark.schema import Judge as JudgeSpec
from autolora_eval.benchmark.sources import Source
from autolora_eval.errors import AutoLoRAEvalError
from autolora_eval.miniature import miniatures
from autolora_eval.resources import shipped_root
from autolora_eval.rubric import Question, Rubric, read_rubric
from autolora_eval.scoring.judges.base import Request
from autolora_eval.scoring.judges.in_process import TransformersJudge, conversation

PROMPTS = ["a red house in front of a blue background", "a", "a green tree, pixel art " * 3]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature judge, or one of the same architecture that has learnt nothing."""
    if "judge" in miniatures():
        return miniatures()["judge"]
    from autolora_eval.miniature.recipes import judge_model, judge_tokenizer

    folder = tmp_path_factory.mktemp("judge")
    torch.manual_seed(0)
    tokenizer = judge_tokenizer.build()
    judge_model.export(judge_model.Judge(tokenizer), tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def rubric() -> Rubric:
    return read_rubric(shipped_root() / "prompts" / "rubrics" / "pixel_art.yaml")


def judge(model: Path, **changes: Any) -> TransformersJudge:
    settings = {"backend": "transformers", "max_tokens": 12} | changes
    spec = JudgeSpec(rubric="r", model=str(model), **settings)
    source = Source(str(model), "folder", str(model))
    return TransformersJudge(spec, source, torch.device("cpu"))


@pytest.fixture(scope="module")
def loaded(model: Path) -> TransformersJudge:
    return judge(model)


@pytest.fixture
def requests(tmp_path: Path, rubric: Rubric) -> list[Request]:
    found = []
    for n, prompt in enumerate(PROMPTS):
        path = tmp_path / f"{n}.png"
        picture(("cell", n, 0), (64, 64)).save(path)
        found.append(Request(path, rubric.question(prompt)))
    return found


def test_a_reply_does_not_depend_on_its_batch(loaded, requests) -> None:
    """Questions of unequal length: the padding must not show."""
    together = loaded.ask(requests)
    alone = [loaded.ask([request])[0] for request in requests]
    backwards = loaded.ask(requests[::-1])[::-1]
    for replies in (alone, backwards):
        assert [reply.text for reply in replies] == [reply.text for reply in together]
        assert [reply.truncated for reply in replies] == [r.truncated for r in together]
    assert all(isinstance(reply.text, str) and reply.reason is None for reply in together)


def test_the_question_reaches_the_model_as_the_rubric_says(loaded, requests, rubric) -> None:
    """What the processor makes of a question is the template around the rubric's own words."""
    _, processor = loaded._model()
    question = requests[0].question
    chat = conversation(question, Image.new("RGB", (64, 64)))
    text = processor.apply_chat_template([chat], add_generation_prompt=True, tokenize=False)[0]
    after = rubric.text.split(rubric.placeholders.image)[1].strip()
    assert question.after == after.replace(rubric.placeholders.prompt, PROMPTS[0])
    assert text.count(question.after) == 1
    assert text.index("<image>") < text.index(question.after)
    assert text.count("<image>") == 1


def test_the_texts_of_a_question_stand_around_its_image() -> None:
    image = Image.new("RGB", (4, 4))

    def kinds(before: str, after: str) -> list[str]:
        (message,) = conversation(Question(before, after), image)
        assert message["role"] == "user"
        return [part.get("text", part["type"]) for part in message["content"]]

    assert kinds("b", "a") == ["b", "image", "a"]
    assert kinds("", "a") == ["image", "a"]
    assert kinds("b", "") == ["b", "image"]


def test_an_image_that_cannot_be_opened_is_a_reply_with_a_reason(loaded, requests) -> None:
    expected = [reply.text for reply in loaded.ask(requests)]
    corrupt = requests[0].image.parent / "corrupt.png"
    corrupt.write_bytes(requests[0].image.read_bytes()[:100])
    broken = [Request(corrupt, requests[0].question)]
    absent = [Request(corrupt.with_name("absent.png"), requests[0].question)]
    replies = loaded.ask([requests[0], *broken, *absent, *requests[1:]])
    assert [reply.reason for reply in replies] == [None, "corrupt_image", "missing_image"] + [
        None
    ] * 2
    assert [replies[n].text for n in (0, 3, 4)] == expected
    assert loaded.ask(broken)[0].text is None


def test_a_reply_that_runs_into_the_limit_says_so(model, requests) -> None:
    """A verdict takes more than one token; at one token, only the end itself is no truncation."""
    (reply,) = judge(model, max_tokens=1).ask(requests[:1])
    assert reply.truncated
    (longer,) = judge(model, max_tokens=3).ask(requests[:1])
    assert longer.text.startswith(reply.text)


def test_sampling_is_seeded(model, requests) -> None:
    settings = {"temperature": 2.0, "max_tokens": 8}
    one = [reply.text for reply in judge(model, seed=1, **settings).ask(requests)]
    assert [reply.text for reply in judge(model, seed=1, **settings).ask(requests)] == one


def test_what_decides_a_reply_is_its_identity(model) -> None:
    same = judge(model).identity()
    assert judge(model, seed=9).identity() == same  # greedy: no seed decides anything
    changed = [{"max_tokens": 13}, {"temperature": 0.5}, {"temperature": 0.5, "seed": 9}]
    changed.append({"batch_size": 3})  # it decides a reply's last bits, as it does an image's
    found = [same, *(judge(model, **change).identity() for change in changed)]
    found.append(judge(model, dtype="bfloat16").identity())
    assert all(a != b for n, a in enumerate(found) for b in found[:n])


def test_a_folder_that_holds_no_judge_is_named(tmp_path, requests) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(AutoLoRAEvalError, match=r"the judge '.*' cannot be loaded"):
        judge(tmp_path).ask(requests[:1])
