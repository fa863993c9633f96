"""Logits processors: constraint, sampling noise and recorded log-probabilities."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from autolora_eval.scoring.judges.logits_processors import (
    Grammar,
    GumbelNoise,
    LogprobRecorder,
    RegexLogitsProcessor,
    TokenTexts,
    UnsupportedConstraintError,
    row_seed,
)
from autolora_eval.scoring.rubric import Question
from autolora_eval.sources.lookup import miniatures

pytestmark = pytest.mark.model

PATTERN = r'\{"pc": ?[0-5], ?"st\.": ?(10|[1-9])\}'
WORDS = [
    f'{{"pc":{a}{pc},{b}"st.":{c}{st}}}'
    for a in ("", " ")
    for b in ("", " ")
    for c in ("", " ")
    for pc in range(6)
    for st in range(1, 11)
]
BEGINNINGS = {word[:n] for word in WORDS for n in range(len(word) + 1)}


def byte_level() -> Any:
    """The miniature judge's, which has tokens of two thousand letters."""
    return AutoTokenizer.from_pretrained(miniatures()["judge"])


def llama_like() -> Any:
    """One that writes blanks as '▁' and unknown letters as bytes, as LLaVA's does."""
    pieces = ["<pad>", "<s>", "</s>", "<unk>", *(f"<0x{n:02X}>" for n in range(256))]
    pieces += [*'{}":,.pcst▁0123456789', '▁"', "pc", '":', "▁4", "10", "st", "▁a", "a", "▁{"]
    merges = [("▁", '"'), ("p", "c"), ('"', ":"), ("▁", "4"), ("1", "0"), ("s", "t"), ("▁", "a")]
    merges.append(("▁", "{"))
    vocab = {piece: n for n, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture(scope="module", params=[byte_level, llama_like])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.param()


@pytest.fixture(scope="module")
def mini() -> Any:
    return byte_level()


def texts(tokenizer: Any) -> dict[int, str]:
    """What each token writes in the midst of a reply; special tokens write nothing."""
    pieces, special = TokenTexts(tokenizer), set(tokenizer.all_special_ids)
    found = {}
    for piece, token in tokenizer.get_vocab().items():
        if token not in special:
            found[token] = chr(int(piece[3:5], 16)) if piece.startswith("<0x") else ""
            found[token] = found[token] or pieces._text(token, False)
    return found


def choices(text: str) -> int:
    """How many characters, or the end, may follow."""
    return len(
        {more[len(text)] for more in BEGINNINGS if len(more) > len(text) and more.startswith(text)}
    ) + (text in WORDS)


def allowed(scores: torch.Tensor) -> set[int]:
    """The tokens that are left, of one row."""
    return set(torch.isfinite(scores).nonzero().flatten().tolist())


class Walk:
    """Rows of a batch under a mask, token by token."""

    def __init__(self, grammar: Grammar, rows: int, width: int) -> None:
        self.held, self.rows, self.width = RegexLogitsProcessor(grammar), rows, width
        self.ids = torch.zeros(rows, 3, dtype=torch.int64)

    def step(self, taken: Iterable[int] | None = None) -> list[set[int]]:
        if taken is not None:
            self.ids = torch.cat([self.ids, torch.tensor(list(taken)).view(-1, 1)], 1)
        scores = self.held(self.ids, torch.zeros(self.rows, self.width))
        return [allowed(row) for row in scores]


def test_only_tokens_that_the_pattern_allows_are_allowed(tokenizer) -> None:
    """Every token of the vocabulary is looked at, at each step of random walks."""
    written = texts(tokenizer)
    (end,) = [tokenizer.eos_token_id]
    grammar = Grammar(PATTERN, tokenizer, [end])
    rng = np.random.default_rng(0)
    rows, width = 6, max(tokenizer.get_vocab().values()) + 1
    walk, so_far, ended, done = Walk(grammar, rows, width), [""] * rows, set(), []
    taken = None
    while len(ended) < rows:
        left = walk.step(taken)
        taken = []
        for row in range(rows):
            if row in ended:
                taken.append(tokenizer.pad_token_id)
                continue
            text = so_far[row]
            expected = {n for n, more in written.items() if more and text + more in BEGINNINGS}
            expected |= {end} if text in WORDS else set()
            assert left[row], text
            assert left[row] <= expected, text
            if choices(text) > 1:  # what is certain, llguidance has in its usual tokens only
                assert {written.get(n) for n in left[row]} == {written.get(n) for n in expected}
            taken.append(int(rng.choice(sorted(left[row]))))
            if taken[-1] == end:
                ended.add(row)
                done.append(text)
            else:
                so_far[row] += written[taken[-1]]
    assert len(done) == rows
    assert set(done) <= set(WORDS)


def test_complete_reply_allows_only_end_tokens(mini) -> None:
    ends = [mini.eos_token_id, mini.pad_token_id]
    walk = Walk(Grammar("[0-5]", mini, ends), 1, len(mini))
    walk.step()
    (digit,) = mini("4", add_special_tokens=False)["input_ids"]
    assert walk.step([digit]) == [set(ends)]
    assert walk.step([ends[1]]) == [set(ends)]  # filled up behind the end: nothing is lost
    assert walk.step([0]) == [set(ends)]


def test_optional_continuation_allows_the_end_token(mini) -> None:
    walk = Walk(Grammar("[0-5]{1,2}", mini, [mini.eos_token_id]), 1, len(mini))
    (digits,) = walk.step()
    assert len(digits) == 6
    assert walk.step([min(digits)]) == [digits | {mini.eos_token_id}]


@pytest.mark.parametrize("width", [40, 969, 3000])
def test_logits_may_be_wider_or_narrower_than_the_tokenizer(mini, width) -> None:
    """Each token is known by its own text, though those of hundreds of letters are left out."""
    written = texts(mini)
    assert max(map(len, written.values())) > 255
    for pattern in ("[ -~]{1,30}", "[\\x00-\\x7f]{1,2000}"):
        (found,) = Walk(Grammar(pattern, mini, [mini.eos_token_id]), 1, width).step()
        expected = {n for n, text in written.items() if re.fullmatch(pattern, text)}
        assert len(mini) - 1 in expected
        short = {n for n in expected if n < width and len(written[n]) <= 200}
        assert short <= found <= expected
        assert max(len(written[n]) for n in found) <= 255


def test_unsupported_constraint_has_a_reason(mini, monkeypatch) -> None:
    with pytest.raises(UnsupportedConstraintError, match="does not support the pattern"):
        Grammar("(a", mini, [2])
    with pytest.raises(UnsupportedConstraintError, match="tokenizers"):
        Grammar("a", object(), [2])

    class Odd:
        backend_tokenizer = type("B", (), {"to_str": lambda self: '{"model": {"type": "?"}}'})()

        def get_vocab(self) -> dict[str, int]:
            return {"a": 0}

    with pytest.raises(UnsupportedConstraintError, match="does not support its tokenizer"):
        Grammar("a", Odd(), [0])
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UnsupportedConstraintError, match="not installed"):
        Grammar("a", mini, [2])


# --- sampling ---------------------------------------------------------------------------------

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -torch.inf, 1.5])
DRAWS = 20_000
# A right sampler misses it once in a million; the seeds are fixed, so it is always the same one.
THRESHOLD = chi2.ppf(1 - 1e-6, df=4)


def drawn(temperature: float) -> np.ndarray:
    """How often each token is the largest, of as many rows of a batch."""
    scores = LOGITS.expand(DRAWS, -1)
    noisy = GumbelNoise(range(DRAWS), temperature)(torch.zeros(DRAWS, 1), scores)
    return np.bincount(noisy.argmax(1).numpy(), minlength=len(LOGITS))


def chi_square(counts: np.ndarray, temperature: float) -> float:
    expected = DRAWS * torch.softmax(LOGITS.double() / temperature, 0).numpy()
    possible = expected > 0
    assert counts[~possible].sum() == 0  # what the mask forbids is never drawn
    return float((((counts - expected)[possible]) ** 2 / expected[possible]).sum())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_argmax_of_noisy_logits_samples_at_the_temperature(temperature) -> None:
    counts = drawn(temperature)
    assert chi_square(counts, temperature) < THRESHOLD
    assert chi_square(counts, 1.1 * temperature) > THRESHOLD  # the test can tell


def test_noise_differs_between_positions() -> None:
    noise, ids = GumbelNoise([7], 1.0), torch.zeros(1, 1)
    steps = torch.cat([noise(ids, torch.zeros(1, 50)) for _ in range(200)])
    correlation = np.corrcoef(steps.numpy())[np.triu_indices(200, 1)]
    assert abs(correlation).max() < 0.9


def test_noise_of_a_row_depends_only_on_its_seed() -> None:
    ids, scores = torch.zeros(3, 1), torch.zeros(3, 9)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    together = GumbelNoise([5, 6, 7], 1.0)(ids, scores)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(GumbelNoise([6], 1.0)(ids[:1], scores[:1])[0], together[1])
    assert len({tuple(row.tolist()) for row in together}) == 3


@pytest.mark.parametrize("temperature", [1e-300, 2.0])
def test_no_temperature_overflows(temperature) -> None:
    noisy = GumbelNoise(range(50), temperature)(torch.zeros(50, 1), LOGITS.expand(50, -1) * 1e4)
    assert torch.equal(torch.isfinite(noisy), torch.isfinite(LOGITS).expand(50, -1))


def test_seed_of_a_row_depends_on_seed_image_and_question() -> None:
    one = (0, b"image", Question("a", "b"))
    others = [
        (1, b"image", Question("a", "b")),
        (0, b"images", Question("a", "b")),
        (0, b"image", Question("ab", "")),
        (0, b"image", Question("", "ab")),
    ]
    seeds = [row_seed(*asked) for asked in (one, *others)]
    assert len(set(seeds)) == len(seeds)
    assert row_seed(*one) == seeds[0]
    assert all(0 <= seed < 2**64 for seed in seeds)


# --- what is recorded -------------------------------------------------------------------------


def test_recorder_keeps_the_most_likely_and_the_chosen_token() -> None:
    recorder, rng = LogprobRecorder(count=2), torch.Generator().manual_seed(0)
    steps = [torch.randn(2, 6, generator=rng) for _ in range(3)]
    taken = torch.tensor([[5, 0, 2], [1, 1, 3]])
    ids = torch.zeros(2, 4, dtype=torch.int64)
    for n, scores in enumerate(steps):
        assert torch.equal(recorder(torch.cat([ids, taken[:, :n]], 1), scores), scores)
    places = recorder.logprobs(torch.cat([ids, taken], 1))
    for row in range(2):
        for n, scores in enumerate(steps):
            exact = torch.log_softmax(scores[row].double(), 0)
            kept = {*exact.topk(2).indices.tolist(), int(taken[row, n])}
            assert places[row][n].keys() == kept
            for token, value in places[row][n].items():
                assert value == pytest.approx(float(exact[token]), abs=1e-6)


REPLY = '{"pc": 4, "st.": 10}'


def test_texts_of_tokens_add_up_to_the_reply(tokenizer) -> None:
    """Also where a tokenizer hides the blank that a token begins with."""
    for text in (REPLY, f"a {REPLY} a"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        decoded = tokenizer.decode(ids)
        assert decoded == text
        places = [{token: -0.5} for token in ids]
        tokens = TokenTexts(tokenizer).tokens(ids, places, decoded)
        assert "".join(token.text for token in tokens) == text
        assert [token.alternatives for token in tokens] == [{t.text: -0.5} for t in tokens]


def test_character_split_over_tokens_gives_no_tokens(tokenizer) -> None:
    ids = tokenizer("a ö", add_special_tokens=False)["input_ids"]
    text = tokenizer.decode(ids)
    assert text == "a ö"
    assert TokenTexts(tokenizer).tokens(ids, [{token: 0.0} for token in ids], text) == ()


def test_special_tokens_are_omitted_and_equal_texts_merged(mini) -> None:
    (four,) = mini("4", add_special_tokens=False)["input_ids"]
    # Two bytes of which neither is a letter: one text, �, and either's probability.
    first, second = mini("ö", add_special_tokens=False)["input_ids"]
    place = {four: np.log(0.5), first: np.log(0.2), second: np.log(0.1), mini.eos_token_id: -3.0}
    ids = [mini.bos_token_id, four]
    (token,) = TokenTexts(mini).tokens(ids, [{ids[0]: 0.0}, place], "4")
    assert token.text == "4"
    assert token.alternatives == pytest.approx(
        {"4": np.log(0.5), "�": np.log(0.3), mini.eos_token: -3.0}
    )
