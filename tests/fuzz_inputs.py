"""The kinds of hostile input: how cases of each are made, and what reads them."""

from __future__ import annotations

import io
import json
import re
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import image_files
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from conftest import benchmark_content, furnish
from fuzz_runs import RUNS
from hypothesis import strategies as st
from mutations import BIG, Input, as_json, as_jsonl, as_yaml, damaged, fragments, mutated
from PIL import Image
from scored_run import picture

from autolora_eval.config.load import load_benchmark
from autolora_eval.config.lora_file import read_lora_file
from autolora_eval.config.plan import make_plan
from autolora_eval.generation.image_sets import read_image_set
from autolora_eval.runs.images import ImageError, open_image, read_picture, reduced, single_colour
from autolora_eval.scoring.judge import Token
from autolora_eval.scoring.reply import expected_scores, parse_reply
from autolora_eval.scoring.rubric import Rubric, read_rubric

# ---- Benchmark files and rubrics

YAML = fragments(
    *("\n", "\n  ", ": ", "- ", "{", "}", "[", "]", ",", "&a ", "*a", "<<: *a", "? ", "|\n ", ">"),
    *("!!int ", "!!bool ", "!!float ", "!!timestamp ", "!!binary ", "!!set ", "!!omap ", "!!null "),
    *("!!python/object/apply:os.system [x]", "!!str ", "1:59", "0x", "2024-13-45", ".inf", "#"),
    *("name", "prompts", "seeds", "models", "methods", "scores", "text", "A", "'", '"', "\t", "%"),
    most=200,
)


# Once an exception of PyYAML, a number that cannot be printed, and hours.
NOT_YAML = (
    *("a: !!int ", "a: !!bool x", "a: !!timestamp x", "a: " + "[" * 2000),
    *("seeds: 0x" + "f" * 5000, "name: 1" + ":59" * 200_000),
)


def use_benchmark(place: Path, text: str) -> None:
    file = place / "bench.yaml"
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    make_plan(load_benchmark(file))


def use_rubric(place: Path, text: str) -> None:
    file = place / "another.yaml"
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    read_rubric(file).question("a cat")


RUBRIC: dict[str, Any] = {
    "name": "r",
    "source": "someone",
    "placeholders": {"image": "<I>", "prompt": "<P>", "values": {}, "delimiters": ["###"]},
    "scores": {
        "pc": {"key": "pc", "display_name": "Correspondence"},
        "style": {"key": "Style", "display_name": "S", "min": 1.0, "max": 9.0, "type": "number"},
    },
    "remarks": {"why": {"kind": "text", "before_scores": True}},
    "text": "Look: <I> ### Does it show <P>?",
}


# ---- Replies

REPLIES = fragments(
    *("{", "}", "[", "]", '"pc"', '"Style"', ":", ",", "5", "4/5", "4 out of 5", "NaN", "1e999"),
    *("<think>", "</think>", "```json\n", "\\", '"', "'", "'pc'", "null", "-", '{"pc": 3}', "\\u"),
    *('{"pc": 3, "Style": 2.5}', "True", "9" * 5000, "\n", "(", "lambda", "\ud800", "0x1", "**"),
    most=4000,
)


def use_reply(place: Path, text: str) -> None:
    rubric = Rubric.model_validate(RUBRIC)
    for truncated in (False, True):
        found = parse_reply(text, rubric, truncated=truncated)
        assert (found.scores is None) != (found.reason is None)
    tokens = [Token(text[n : n + 3], {"5": -1.0, text[n : n + 3]: -0.5}) for n in range(0, 99, 3)]
    expected_scores(text[:99], tokens, rubric)


# ---- Images made elsewhere

ROWS = [
    {"file_name": f"img/{seed}.png", "prompt": "a cat", "seed": seed, "more": [1.5, None]}
    for seed in (3, 4)
]


def parquet(rows: list[dict[str, Any]]) -> bytes:
    stream = io.BytesIO()
    pd.DataFrame(rows).to_parquet(stream)
    return stream.getvalue()


CSV = pd.DataFrame(ROWS).to_csv(index=False).encode()


def no_parquet() -> bytes:
    """Return a file whose metadata of pandas is empty: once a KeyError."""
    stream = io.BytesIO()
    table = pa.table({"file_name": ["img/3.png"], "prompt": ["a cat"]})
    pq.write_table(table.replace_schema_metadata({"pandas": "{}"}), stream)
    return stream.getvalue()


LISTINGS = st.one_of(
    mutated(ROWS).map(lambda rows: ("a.jsonl", as_jsonl(rows))),
    fragments(*CSV.decode().splitlines(), "\n", "\r", ",", ";", "\t", '"', "seed", "\0").map(
        lambda text: ("a.csv", text)
    ),
    damaged([CSV]).map(lambda data: ("a.csv", data)),
    damaged([as_jsonl(ROWS).encode()]).map(lambda data: ("a.jsonl", data)),
    damaged([parquet(ROWS), parquet([ROWS[0] | {"seed": 0.5, "prompt": b"x"}])]).map(
        lambda data: ("a.parquet", data)
    ),
)


def use_listing(place: Path, listing: tuple[str, str | bytes]) -> None:
    name, data = listing
    file = place / name
    is_text = isinstance(data, str)
    file.write_bytes(data.encode(errors="surrogatepass") if is_text else data)
    for record in read_image_set(file).records:
        with suppress(OSError):  # documented: no such file, or a name too long for one
            record.read()


def encoded(form: str, **options: Any) -> bytes:
    return image_files.encoded(picture(("x", 0, 0), (24, 24)), form, **options)


def with_checksums(data: bytes) -> bytes:
    """Return a PNG whose chunks have the checksums of what is in them now."""
    at, made = 8, bytearray(data)
    while at + 12 <= len(made):
        length = int.from_bytes(made[at : at + 4], "big")
        end = at + 8 + length
        if end + 4 > len(made):
            break
        made[end : end + 4] = zlib.crc32(made[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(made)


EXIF = Image.Exif()
EXIF[0x0112] = 6
MORE = [picture(("x", 0, 1), (24, 24))]
PNGS = [encoded("PNG"), encoded("PNG", exif=EXIF), encoded("PNG", dpi=(300, 300))]
PICTURES = st.one_of(
    damaged(PNGS),
    damaged(PNGS).map(with_checksums),
    damaged(
        [
            *(encoded("JPEG"), encoded("JPEG", exif=EXIF, progressive=True), encoded("WEBP")),
            *(encoded("TIFF"), encoded("TIFF", compression="tiff_lzw"), encoded("BMP")),
            *(encoded("GIF", save_all=True, append_images=MORE), encoded("PPM")),
            encoded("JPEG2000"),
        ]
    ),
)


def use_picture(place: Path, data: bytes) -> None:
    file = place / "0.png"
    file.write_bytes(data)
    read_picture(file, 10_000_000)
    single_colour(reduced(open_image(file)))


# ---- LoRA files


def lora_header(*names: str, **metadata: str) -> dict[str, Any]:
    """Return the header of a LoRA of rank 2 on one layer, with these names for its parts."""
    shapes = dict(zip(names, ([2, 4], [4, 2], [], [4]), strict=False))
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    return header


PEFT = "unet.mid_block.attentions.0.proj_in"
KOHYA = "lora_unet_mid_block_attentions_0_proj_in"
ADAPTER = as_json({"unet.lora_alpha": 4, "unet.alpha_pattern": {"mid_block.*": 2.0}})
HEADERS = [
    lora_header(f"{PEFT}.lora_A.weight", f"{PEFT}.lora_B.weight", lora_adapter_metadata=ADAPTER),
    lora_header(
        *(f"{KOHYA}.{part}" for part in ("lora_down.weight", "lora_up.weight", "alpha")),
        f"{KOHYA}.dora_scale",
        ss_network_alpha="4",
    ),
]


def safetensors(header: Any) -> bytes:
    text = as_json(header)
    stops = map(int, re.findall(r'"data_offsets": ?\[\d+, ?(\d{1,3})\]', text))
    data = np.ones(250, np.float32).tobytes()[: max(stops, default=0)]
    return struct.pack("<Q", len(text.encode())) + text.encode() + data


CONFIG = {"lora_alpha": 4, "use_rslora": True, "alpha_pattern": {"mid_block": 2}}
LORAS = st.one_of(
    st.sampled_from(HEADERS).flatmap(mutated).map(lambda header: (safetensors(header), None)),
    damaged([safetensors(header) for header in HEADERS]).map(lambda data: (data, None)),
    mutated(json.loads(ADAPTER)).map(
        lambda alphas: (
            safetensors(HEADERS[0] | {"__metadata__": {"lora_adapter_metadata": as_json(alphas)}}),
            None,
        )
    ),
    mutated(CONFIG).map(
        lambda config: (safetensors(HEADERS[0] | {"__metadata__": {}}), as_json(config))
    ),
)


def with_alphas(**alphas: Any) -> tuple[bytes, None]:
    text = as_json({f"unet.{key}": value for key, value in alphas.items()})
    return safetensors(HEADERS[0] | {"__metadata__": {"lora_adapter_metadata": text}}), None


def with_alpha_at(stop: int) -> dict[str, Any]:
    alpha = {"dtype": "I64", "shape": [], "data_offsets": [0, stop]}
    return HEADERS[1] | {f"{KOHYA}.alpha": alpha}


# Once exceptions without a file name, and for ever.
NOT_LORAS = (
    (safetensors(HEADERS[0] | {"__metadata__": [1]}), None),
    (struct.pack("<Q", 9_000) + b"[" * 9_000, None),
    (safetensors(with_alpha_at(stop=-8)), None),
    with_alphas(lora_alpha=""),
    with_alphas(lora_alpha=BIG),
    with_alphas(alpha_pattern=[1]),
    with_alphas(alpha_pattern={"(": 2.0}),
    with_alphas(alpha_pattern={"(.+)+(.+)+(.+)+!": 2.0}),
)


def use_lora(place: Path, lora: tuple[bytes, str | None]) -> None:
    data, config = lora
    (place / "l.safetensors").write_bytes(data)
    beside = place / "adapter_config.json"
    beside.unlink(missing_ok=True)
    if config is not None:
        beside.write_text(config)
    read_lora_file(place / "l.safetensors").summary()


INPUTS = {
    kind.name: kind
    for kind in (
        Input("yaml", YAML, use_benchmark, examples=NOT_YAML, prepare=furnish),
        Input(
            "benchmarks",
            mutated(benchmark_content()).map(as_yaml),
            use_benchmark,
            prepare=furnish,
        ),
        Input("rubrics", mutated(RUBRIC).map(as_yaml), use_rubric),
        Input("replies", REPLIES, use_reply, errors=()),
        Input("listings", LISTINGS, use_listing, examples=[("a.parquet", no_parquet())]),
        Input("pictures", PICTURES, use_picture, errors=(ImageError,)),
        Input("loras", LORAS, use_lora, examples=NOT_LORAS),
        *RUNS,
    )
}
