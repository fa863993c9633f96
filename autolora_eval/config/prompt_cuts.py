"""Which prompts the text encoders of SDXL and SD3 do not read to their end.

Only tokenizers are loaded, with the library `tokenizers`: importing transformers takes seconds.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from autolora_eval._text import join_names
from autolora_eval.config.inputs import INDEX, known_class, pipeline_class
from autolora_eval.runs.manifest import PromptCut, PromptCuts
from autolora_eval.sources.model_source import Source, cached

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from autolora_eval.config.plan import Plan

_PIPELINES = ("StableDiffusionXL", "StableDiffusion3")
# `max_sequence_length` of diffusers' SD3 (modular_pipelines/stable_diffusion_3/encoders.py).
_T5_TOKENS = 256
# As transformers' CLIPTokenizer (models/clip/tokenization_clip.py).
_CLIP_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
_START, _END = "<|startoftext|>", "<|endoftext|>"
_NEGATIVE = "negative prompt"
_NO_LIMIT = 10**30  # as in transformers
_LISTED = 5  # prompts that a message names
_SHOWN = 30  # characters on each side of a cut


def plan_prompt_cuts(plan: Plan) -> dict[str, PromptCuts]:
    """Return what is known to be cut of a plan's prompts, by each model that makes images."""
    return {
        name: cuts
        for name, cuts in all_prompt_cuts(plan).items()
        if isinstance(cuts, PromptCuts) and (cuts.cut or cuts.same)
    }


def all_prompt_cuts(plan: Plan) -> dict[str, PromptCuts | str]:
    """Return the same for all models that make images, or why it is not known of one."""
    pairs = list(dict.fromkeys((job.prompt, job.negative_prompt) for job in plan.jobs))
    found: dict[str, PromptCuts | str] = {}
    for model in plan.loaded_models:
        spec, layout = model.spec, model.layout
        cuts = prompt_cuts(layout, pairs, spec.negative_prompt, spec.left_out)
        found[model.name] = cuts or _why_unknown(layout)
    return found


def _why_unknown(pipeline: Source) -> str:
    kind = known_class(pipeline)
    if kind is not None and not kind.startswith(_PIPELINES):
        return f"whether any is cut is not known of a {kind}"
    return "whether any is cut is unknown until the model is downloaded"


def prompt_cuts(
    pipeline: Source,
    pairs: Sequence[tuple[str, str | None]],
    negative_prompt: str = "",
    left_out: Collection[str] = (),
) -> PromptCuts | None:
    """Return the prompts that are cut, and those that all text encoders read as the same.

    None if the tokenizers are not on this machine, or the pipeline is of another family.
    """
    readers = _readers(pipeline, left_out)
    if readers is None:
        return None
    texts = {_NEGATIVE: negative_prompt}
    for n, (prompt, own) in enumerate(pairs, 1):
        texts |= {f"prompt {n}": prompt} | ({f"{_NEGATIVE} {n}": own} if own is not None else {})
    cuts: dict[tuple[str, int, str], PromptCut] = {}
    read: dict[str, list[list[int]]] = {name: [] for name in texts}
    for encoder, (tokenizer, limit) in readers.items():
        for name, text in texts.items():
            ids, cut = _cut(tokenizer, limit, name, text)
            read[name].append(ids)
            if cut is not None:
                cuts.setdefault((name, limit, cut.read), cut).encoders.append(encoder)
    same: dict[str, list[int]] = {}
    for n in range(1, len(pairs) + 1):
        both = [read[f"prompt {n}"], read.get(f"{_NEGATIVE} {n}", read[_NEGATIVE])]
        same.setdefault(json.dumps(both), []).append(n)
    return PromptCuts(cut=list(cuts.values()), same=[one for one in same.values() if len(one) > 1])


def _cut(
    tokenizer: Tokenizer, limit: int, name: str, text: str
) -> tuple[list[int], PromptCut | None]:
    """Return the tokens of a text that are read, and where it is cut; None if it is not."""
    encoding = tokenizer.encode(text)
    own = [n for n, special in enumerate(encoding.special_tokens_mask) if not special]
    n_read = limit - sum(encoding.special_tokens_mask)
    ids = [encoding.ids[n] for n in own[:n_read]]
    if len(own) <= n_read:
        return ids, None
    end, _ = encoding.offsets[own[n_read]]
    tokens = len(encoding.ids)
    read = text[:end].rstrip()
    return ids, PromptCut(name=name, encoders=[], tokens=tokens, limit=limit, read=read)


def _readers(
    pipeline: Source, left_out: Collection[str] = ()
) -> dict[str, tuple[Tokenizer, int]] | None:
    """Return the tokenizer of each text encoder and the tokens that it reads."""
    index = cached(pipeline, INDEX)
    if index is None or importlib.util.find_spec("tokenizers") is None:
        return None
    if not pipeline_class(index, pipeline.name).startswith(_PIPELINES):
        return None
    parts = json.loads(index.read_bytes())
    suffixes = [x for x in ("", "_2", "_3") if (parts.get(f"text_encoder{x}") or [None])[0]]
    found = {
        f"text_encoder{x}": _reader(pipeline, f"tokenizer{x}")
        for x in suffixes
        if f"text_encoder{x}" not in left_out
    }
    known = {name: reader for name, reader in found.items() if reader is not None}
    return known if len(known) == len(found) else None


def _reader(pipeline: Source, folder: str) -> tuple[Tokenizer, int] | None:
    """Return a tokenizer and the tokens that its encoder reads; None if it is not here."""
    from tokenizers import Tokenizer

    config = cached(pipeline, f"{folder}/tokenizer_config.json")
    file = cached(pipeline, f"{folder}/tokenizer.json")
    vocabulary = cached(pipeline, f"{folder}/vocab.json")
    merges = cached(pipeline, f"{folder}/merges.txt")
    if config is None:
        return None
    try:
        settings = json.loads(config.read_bytes())
        is_t5 = str(settings.get("tokenizer_class")).startswith("T5")
        limit = _T5_TOKENS if is_t5 else int(settings.get("model_max_length", _NO_LIMIT))
        if file is not None:
            tokenizer = Tokenizer.from_file(str(file))
        elif vocabulary is not None and merges is not None:
            tokenizer = _clip_tokenizer(str(vocabulary), str(merges))
        else:
            return None
    except Exception:  # the library raises nothing narrower; loading the pipeline says more
        return None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, limit


def _clip_tokenizer(vocabulary: str, merges: str) -> Tokenizer:
    """Return the tokenizer that transformers makes of these files for CLIP."""
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import BPE

    tokenizer = Tokenizer(
        BPE.from_file(vocabulary, merges, unk_token=_END, end_of_word_suffix="</w>")
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.add_special_tokens([_START, _END])
    ids = tokenizer.get_vocab()
    tokenizer.post_processor = processors.RobertaProcessing(
        (_END, ids[_END]), (_START, ids[_START]), trim_offsets=False, add_prefix_space=False
    )
    return tokenizer


def describe_cuts(found: PromptCuts | str) -> list[str]:
    """Return lines that say which prompts are cut and where, and which are the same."""
    if isinstance(found, str):
        return [found] if found else []
    lines = [
        f"{cut.name} is cut: {join_names(cut.encoders)} read {cut.limit} of {cut.tokens} tokens, "
        f"up to '…{cut.read[-_SHOWN:]}'"
        for cut in found.cut[:_LISTED]
    ]
    if len(found.cut) > _LISTED:
        lines.append(f"and {len(found.cut) - _LISTED} more")
    lines += [
        f"prompts {join_names([str(n) for n in group])} are the same to every text encoder: "
        f"identical images, counted as {len(group)} prompts"
        for group in found.same[:_LISTED]
    ]
    if len(found.same) > _LISTED:
        lines.append(f"and {len(found.same) - _LISTED} more groups of such prompts")
    return lines
