"""The judge in this process: batches, images, failures and identity."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from in_process import PROMPTS, ask, judge, said
from PIL import Image
from scored_run import picture

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval.scoring.judge import Request
from autolora_eval.scoring.judges.transformers_judge import TransformersJudge, conversation
from autolora_eval.scoring.rubric import Question

pytestmark = pytest.mark.model

# Batches and images.


def test_requests_are_consumed_and_answered_batch_by_batch(model, requests) -> None:
    taken = []

    def waiting() -> Iterator[Request]:
        for request in requests:
            taken.append(request)
            yield request

    replies = judge(model, batch_size=2).replies(waiting())
    assert taken == []
    assert [request for request, _ in next(replies)] == requests[:2]
    assert taken == requests[:2]
    assert [request for request, _ in next(replies)] == requests[2:]
    assert list(replies) == []
    assert list(judge(model).replies([])) == []


def test_chat_template_contains_the_rubrics_text(loaded, requests, rubric) -> None:
    """The processor adds only its template to the rubric's text."""
    processor = loaded._processor
    question = requests[0].question
    chat = conversation(question, Image.new("RGB", (64, 64)))
    text = processor.apply_chat_template([chat], add_generation_prompt=True, tokenize=False)[0]
    after = rubric.text.split(rubric.placeholders.image)[1].strip()
    assert question.after == after.replace(rubric.placeholders.prompt, PROMPTS[0])
    assert text.count(question.after) == 1
    assert text.index("<image>") < text.index(question.after)
    assert text.count("<image>") == 1


def test_texts_of_a_question_surround_the_image() -> None:
    image = Image.new("RGB", (4, 4))

    def kinds(before: str, after: str) -> list[str]:
        (message,) = conversation(Question(before, after), image)
        assert message["role"] == "user"
        return [part.get("text", part["type"]) for part in message["content"]]

    assert kinds("b", "a") == ["b", "image", "a"]
    assert kinds("", "a") == ["image", "a"]
    assert kinds("b", "") == ["b", "image"]


def test_unreadable_image_gives_a_reply_with_a_reason(loaded, requests) -> None:
    expected = said(loaded, requests)
    corrupt = requests[0].image.parent / "corrupt.png"
    corrupt.write_bytes(requests[0].image.read_bytes()[:100])
    broken = [Request(corrupt, requests[0].question)]
    absent = [Request(corrupt.with_name("absent.png"), requests[0].question)]
    replies = ask(loaded, [requests[0], *broken, *absent, *requests[1:]])
    assert [reply.reason for reply in replies] == [None, "corrupt_image", "missing_image"] + [
        None
    ] * 2
    assert [replies[n].text for n in (0, 3, 4)] == expected
    assert (replies[1].text, replies[1].sent) == (None, None)


def test_model_is_not_loaded_for_unreadable_images(model, tmp_path) -> None:
    fresh = judge(model)
    (reply,) = ask(fresh, [Request(tmp_path / "absent.png", Question("", "a"))])
    assert reply.reason == "missing_image"
    assert fresh._model is None


def test_format_and_size_of_the_image_are_recorded(loaded, tmp_path, rubric) -> None:
    path = tmp_path / "wide.jpg"
    picture(("cell", 0, 0), (40, 90)).save(path)
    (reply,) = ask(loaded, [Request(path, rubric.question("a"))])
    size = path.stat().st_size
    assert reply.sent == {"format": "JPEG", "width": 90, "height": 40, "bytes": size}
    assert loaded.facts()["image_size"] == {"height": 64, "width": 64}


def test_reply_at_the_token_limit_is_truncated(model, requests) -> None:
    """A reply takes more than one token."""
    (reply,) = ask(judge(model, max_tokens=1), requests[:1])
    assert reply.truncated
    (longer,) = ask(judge(model, max_tokens=3), requests[:1])
    assert longer.text.startswith(reply.text)


# Failures.


@pytest.mark.parametrize(
    "words", ["two <image> and <image>", "long " * 1100], ids=["image", "long"]
)
def test_invalid_question_does_not_affect_the_others(loaded, requests, words) -> None:
    """The rubric would escape such a prompt."""
    refused = Request(requests[0].image, Question("", words))
    expected = said(loaded, requests)
    replies = ask(loaded, [requests[0], refused, *requests[1:], refused])
    assert [reply.reason for reply in replies] == [None, "bad_request", None, None, "bad_request"]
    assert [replies[n].text for n in (0, 2, 3)] == expected
    assert replies[1].text is None
    assert replies[1].sent["format"] == "PNG"


def test_judge_that_can_answer_no_question_is_an_error(model, rubric, requests, tmp_path) -> None:
    """Not one 'bad_request' for each image."""
    folder = tmp_path / "judge"
    shutil.copytree(model, folder)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(
        AutoLoRAEvalError, match=r"cannot answer a question about an image .*chat template"
    ):
        ask(judge(folder), requests)
    shutil.copytree(model, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 64
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(AutoLoRAEvalError, match=r"the limit is 64\)"):
        ask(judge(folder, rubric, max_tokens=1000), requests)


def test_reply_takes_at_most_half_of_the_context(model, requests) -> None:
    """Whatever the question, so that it does not depend on the others of its batch."""
    asked = judge(model, max_tokens=4096)
    (reply,) = ask(asked, requests[:1])
    assert (reply.reason, asked._max_tokens) == (None, 512)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.0 GB)"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_out_of_memory_error_names_the_batch_size(error, model, requests, monkeypatch) -> None:
    full = judge(model, batch_size=2)
    ask(full, requests[:1])

    def generate(**_: object) -> None:
        raise error

    monkeypatch.setattr(full._model, "generate", generate)
    with pytest.raises(AutoLoRAEvalError, match=r"judge\.batch_size 2\. .*lower it"):
        ask(full, requests)


def test_missing_library_is_reported_before_the_weights_are_loaded(model, monkeypatch) -> None:
    """For example, the processor of Qwen2-VL requires torchvision."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    def from_pretrained(*_: object, **__: object) -> None:
        raise ImportError("Qwen2VLVideoProcessor requires the Torchvision library")

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(AutoProcessor, "from_pretrained", from_pretrained)
    message = r"cannot be loaded: .*Torchvision .*pip install 'autolora-eval\[judges\]'"
    for use in (TransformersJudge.identity, lambda asked: asked.check((64, 64))):
        with pytest.raises(AutoLoRAEvalError, match=message):
            use(judge(model))


def test_closed_judge_releases_its_model(model, requests) -> None:
    one = judge(model)
    expected = said(one, requests)
    one.close()
    assert one._model is None
    assert said(one, requests) == expected


def test_generation_config_of_the_model_is_not_used(loaded, model, requests, tmp_path) -> None:
    """For example, that of Qwen2-VL penalises repetition, and so the same score twice."""
    from transformers import GenerationConfig

    expected = said(loaded, requests)
    tokenizer = loaded._tokenizer
    folder = tmp_path / "judge"
    shutil.copytree(model, folder)
    settings = GenerationConfig.from_pretrained(model)
    settings.update(suppress_tokens=tokenizer(expected[0], add_special_tokens=False)["input_ids"])
    settings.save_pretrained(folder)
    assert said(judge(folder), requests) == expected


# Identity.


def test_identity_has_everything_that_determines_a_reply(model, rubric) -> None:
    same = judge(model).identity()
    assert judge(model, seed=9).identity() == same  # greedy decoding does not use the seed
    changed = [{"max_tokens": 13}, {"temperature": 0.5}, {"temperature": 0.5, "seed": 9}]
    changed.append({"batch_size": 3})  # it influences the last bits of the logits
    changed.append({"logprobs": True})  # cached replies lack them otherwise
    found = [same, *(judge(model, **change).identity() for change in changed)]
    found.append(judge(model, dtype="bfloat16").identity())
    found.append(judge(model, rubric).identity())
    assert all(a != b for n, a in enumerate(found) for b in found[:n])


def test_constraint_is_known_before_the_weights_are_loaded(model, rubric, monkeypatch) -> None:
    def constraint(**changes: Any) -> str:
        one = judge(model, rubric, **changes)
        name = one.identity()["constraint"]
        assert one._model is None
        assert (name == "plain") == ("plain_because" in one.facts())
        return str(name)

    assert constraint() == "regex"
    assert constraint(constraint="regex") == "regex"
    assert constraint(constraint="plain") == "plain"
    assert judge(model, None).identity()["constraint"] == "plain"
    monkeypatch.setitem(sys.modules, "llguidance", None)
    assert constraint() == "plain"
    assert "not installed" in judge(model, rubric).facts()["plain_because"]
    message = (
        r"cannot be constrained .*'llguidance' is not installed .* judge\.constraint to 'plain'"
    )
    with pytest.raises(AutoLoRAEvalError, match=message):
        constraint(constraint="regex")
