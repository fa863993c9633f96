"""What a third-party benchmark would do, read from its text. Nothing is imported or started."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from autolora_eval.config.inputs import METHOD_KINDS
from autolora_eval.config.load import find_benchmark, read_spec
from autolora_eval.config.schema import Benchmark
from autolora_eval.scoring.judges.config import JudgeConfig
from autolora_eval.sources.model_source import MINIATURE, is_hub_id

_VARIABLE = re.compile(r"\$\{(\w+)")


def would_do(benchmark: str | Path) -> list[tuple[str, str]]:
    """Return what a run of a benchmark would import, start, read, fetch, send and write.

    Names are those of the file: no variable is replaced, and no path is looked up. A name without
    dots is built in or of a package that is installed here.
    """
    file = find_benchmark(benchmark)
    _, spec = read_spec(file)
    found = [*_imports(spec), *_reads(spec), *_judge(spec.judge)]
    text = file.read_text(encoding="utf-8")
    found += [("read", f"the variable {name}") for name in _VARIABLE.findall(text)]
    found.append(("write", f"reports/{spec.name}, or what --output names"))
    return list(dict.fromkeys(found))


def _imports(spec: Benchmark) -> Iterator[tuple[str, str]]:
    named = [
        (f"methods.{name}", str(section[kind]))
        for name, section in spec.methods.items()
        for kind in METHOD_KINDS
        if kind in section and kind != "images"
    ]
    named += [("features.extractor", spec.features.extractor)]
    named += [("diversity", name) for name in spec.diversity]
    for key, name in named:
        if "." in name or ":" in name:
            yield "import", f"the Python code '{name}', beside the file or installed ({key})"


def _reads(spec: Benchmark) -> Iterator[tuple[str, str]]:
    files = [spec.prompts if isinstance(spec.prompts, str) else None, spec.published]
    files += [str(section["images"]) for section in spec.methods.values() if "images" in section]
    files += [spec.judge.rubric] if spec.judge else []
    parts = [(m.pipeline, m.pipeline_config, m.vae) for m in spec.models.values()]
    models = [name for names in parts for name in names if name]
    models += [lora.path for m in spec.models.values() for lora in m.loras]
    models += [spec.features.model] if spec.features.extractor in ("transformers", "timm") else []
    if spec.judge is not None and spec.judge.backend == "transformers":
        models.append(spec.judge.model)
    for name in filter(None, files):
        yield "read", str(name)
    for name in models:
        if is_hub_id(name):
            yield "fetch", f"'{name}' from the hub, unless a folder is called so"
        elif not name.startswith(MINIATURE):
            yield "read", name


def _judge(judge: JudgeConfig | None) -> Iterator[tuple[str, str]]:
    if judge is None or judge.backend != "openai":
        return
    if judge.launch:
        program = judge.launch_command or [f"{judge.vllm_python} -m vllm…", judge.model]
        yield "start", " ".join([*program, *judge.launch_args])
        yield "send", "images, prompts and the rubric to that server"
        return
    for url in judge.stated_urls:
        key = f"the key in {judge.api_key_env}, if it is set"
        yield "send", f"images, prompts, the rubric and {key}, to {url}"
