"""Finds what a run needs and this machine lacks, before anything is generated."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from autolora_eval._devices import choose_device, choose_dtype, free_memory, require, uncollected
from autolora_eval._errors import AutoLoRAEvalError, MissingDependencyError, first_line
from autolora_eval._files import require_space
from autolora_eval._progress import quiet_libraries
from autolora_eval.config.inputs import INDEX, TESTED, check_pipeline, pipeline_class
from autolora_eval.config.lora_layers import with_lora_files
from autolora_eval.config.model_section import SCHEDULER_CONFIG, check_variant
from autolora_eval.config.plan import Plan, image_bytes
from autolora_eval.config.stage_inputs import cells_not_generated, feature_settings, judge_settings
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.records import ImageSetRecord
from autolora_eval.sources.model_source import (
    Source,
    absent,
    cached,
    fetched,
    hub_files,
    hub_refusal,
    unreachable,
)

PACKAGES = ("torch", "diffusers", "peft", "transformers", "accelerate")


def hub_sources(plan: Plan) -> Iterator[tuple[Source, str]]:
    """Yield every model on the hub with the file that shows whether it is in the local cache."""
    benchmark = plan.benchmark
    for model in plan.loaded_models:
        yield model.layout, INDEX
        if model.vae is not None:
            yield model.vae, "config.json"
        for lora in model.loras:
            yield lora.source, lora.source.weight_name or "README.md"
    if benchmark.features is not None:
        yield benchmark.features, "config.json"
    if benchmark.judge is not None:
        yield benchmark.judge, "config.json"


def missing(
    plan: Plan, output: Path, judged: bool = True, accept_versions: bool = False
) -> list[str]:
    """Return one message for each thing that the run needs and this machine lacks.

    If it is not `judged`, no judge is needed. With `accept_versions` the run may keep images of
    other versions of the libraries.
    """
    lacking = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if lacking:
        return [str(MissingDependencyError(lacking, "models"))]
    checks = [
        lambda: choose_device(plan.benchmark.spec.device),
        lambda: _extractor(plan),
        lambda: _hub(plan),
        lambda: _guided(plan),
        lambda: _hub_loras(plan),
        lambda: _own_files(plan),
    ]
    if _generates(plan, output):
        checks.append(lambda: _schedulers(plan))
    if judged:
        checks.append(lambda: _judge_server(plan, output))
    problems = [text for check in checks if (text := _try(check))]
    if not problems and (text := _try(lambda: _folder(plan, output, accept_versions))):
        problems = [text]
    if problems or not _generates(plan, output):
        return problems
    # The scoring models are tried one after the other: they are first used hours later.
    trials = [
        lambda: _gpu(plan),
        lambda: _try_compiler(plan),
        lambda: _try_extractor(plan),
        lambda: _try_judge(plan) if judged else None,
    ]
    with uncollected():
        return [text for trial in trials if (text := _try(trial))]


def _try(check: Callable[[], object]) -> str | None:
    try:
        check()
    except AutoLoRAEvalError as error:
        return str(error)
    return None


def _extractor(plan: Plan) -> None:
    for package, extra in plan.benchmark.extractor.kind.packages.items():
        require(package, extra)


def _hub(plan: Plan) -> None:
    """Refuse models on the hub that cannot be fetched, in one message: the cause is often one."""
    lacking = {
        source.location: source
        for source, marker in hub_sources(plan)
        if source.kind == "hub" and not cached(source, marker)
    }
    refused = [(source, why) for source in lacking.values() if (why := hub_refusal(source))]
    if refused:
        raise AutoLoRAEvalError(unreachable([source for source, _ in refused], refused[0][1]))


def _guided(plan: Plan) -> None:
    """Refuse pipelines that no guider can act on. diffusers opens those that are not tested."""
    for model in plan.loaded_models:
        source = model.layout
        if not _reachable(source, INDEX):
            continue
        index = fetched(source, INDEX)
        check_pipeline(source, index)
        if source.kind == "hub":
            check_variant(model, hub_files(source))
        if index is not None and pipeline_class(index, source.name) not in TESTED:
            from autolora_eval.generation.pipeline_loading import open_pipeline

            own = next(filter(None, plan.benchmark.negative_prompts.values()), "")
            asked = model.spec.negative_prompt or own
            with quiet_libraries():
                open_pipeline(source, model.spec.model_copy(update={"negative_prompt": asked}))


def _hub_loras(plan: Plan) -> None:
    """Fetch the LoRAs on the hub, and refuse one that cannot be loaded exactly."""
    for model in plan.loaded_models:
        sources = [lora.source for lora in model.loras]
        is_here = all(_reachable(one, one.weight_name or "README.md") for one in sources)
        if is_here and {one.kind for one in sources} in ({"hub"}, {"hub", "file"}):
            with_lora_files(model)


def _schedulers(plan: Plan) -> None:
    """Refuse schedulers that fail with their options or do not fit the model."""
    for model in plan.loaded_models:
        spec, source = model.spec, model.layout
        if spec.scheduler is None or not _reachable(source, SCHEDULER_CONFIG):
            continue
        own = fetched(source, SCHEDULER_CONFIG)
        if own is not None:
            from autolora_eval.generation.pipeline_loading import make_scheduler

            config = json.loads(own.read_bytes())
            with quiet_libraries():
                make_scheduler(spec.scheduler, config, spec.num_inference_steps)


def _reachable(source: Source, name: str) -> bool:
    """Return whether a file can be asked for. A hub out of reach takes half a minute to fail."""
    is_here = source.kind != "hub" or cached(source, name) is not None
    return is_here or hub_refusal(source) is None


def _own_files(plan: Plan) -> None:
    sources = [lora.source for model in plan.loaded_models for lora in model.loras]
    texts = dict.fromkeys(absent(source) for source in sources if source.kind == "absent")
    if texts:
        raise AutoLoRAEvalError("\n  - ".join(texts))


def _judge_server(plan: Plan, output: Path) -> None:
    judge = plan.benchmark.spec.judge
    if judge is None or judge.backend != "openai":
        return
    from autolora_eval.scoring.judging import completed_judging

    folder = RunFolder(output)
    manifest = folder.find_manifest()
    if manifest and completed_judging(judge_settings(plan), manifest, folder) is not None:
        return  # all is judged: no server is needed
    require("aiohttp", "openai")
    if judge.launch:
        from autolora_eval.scoring.judges.vllm_command import check_launch

        check_launch(judge)
        return
    from autolora_eval.scoring.judges.openai_judge import OpenAIJudge

    with closing(OpenAIJudge(judge, judge_settings(plan).rubric)) as server:
        server.try_question()


def _generates(plan: Plan, output: Path) -> bool:
    """Return whether there are images to generate that no earlier run has begun."""
    manifest = RunFolder(output).find_manifest()
    return bool(plan.loaded_models) and not (manifest and not cells_not_generated(plan, manifest))


def _try_compiler(plan: Plan) -> None:
    compiled = [model.name for model in plan.loaded_models if model.spec.compile]
    if not compiled:
        return
    import torch

    ones = torch.ones(1, device=choose_device(plan.benchmark.spec.device))
    try:
        torch.compile(lambda x: -x)(ones)
    except Exception as error:  # of torch, Triton or the system
        raise AutoLoRAEvalError(
            f"the model '{compiled[0]}' has 'compile: true', but torch.compile fails on this "
            f"machine: {first_line(error)}. It needs a C++ compiler, and the package 'triton' on a "
            "GPU. Install what is missing, or remove this key."
        ) from error


def _try_extractor(plan: Plan) -> None:
    feature_settings(plan).check(_size(plan))
    free_memory()


def _try_judge(plan: Plan) -> None:
    judge = plan.benchmark.spec.judge
    if judge is None or judge.backend != "transformers":
        return
    from autolora_eval.scoring.judging import transformers_judge

    with closing(transformers_judge(judge_settings(plan))) as tried:
        tried.check(_size(plan))


def _size(plan: Plan) -> tuple[int, int]:
    return max((model.size for model in plan.loaded_models), key=lambda size: size[0] * size[1])


def _folder(plan: Plan, output: Path, accept_versions: bool) -> None:
    """Refuse a disk without room for what is to be made, and a mixture of versions."""
    folder, needed = RunFolder(output), plan.disk_bytes
    manifest = folder.find_manifest()
    if manifest is not None:
        from autolora_eval.generation.outlook import Outlook, other_libraries

        device = choose_device(plan.benchmark.spec.device)
        cells = Outlook(plan, folder, manifest, device).cells()
        if not any(one.to_make for one in cells):
            return
        mixture = other_libraries(cells, output)
        if mixture is not None and not accept_versions:
            raise AutoLoRAEvalError(mixture)
        needed -= sum(len(one.kept) * image_bytes(one.cell) for one in cells)
    require_space(output, needed)


def _gpu(plan: Plan) -> None:
    """Refuse a GPU of which other processes leave too little."""
    from autolora_eval.generation.model_on_device import ModelOnDevice

    device = choose_device(plan.benchmark.spec.device)
    dtype = choose_dtype(plan.benchmark.spec.dtype, device)
    for model in plan.loaded_models:
        ModelOnDevice.of(plan, model, device, dtype).require_room()


def check_image_sets(plan: Plan, run: RunFolder) -> dict[str, ImageSetRecord]:
    """Return how every image set of a plan is read. No image is opened, nothing is written.

    Raises:
        UsageError: if a set cannot be read or matched, or overlaps the run folder.
    """
    cells = [cell for cell in plan.cells if cell.method.kind == "images"]
    if not cells:
        return {}
    from autolora_eval.generation.image_import import planned_set

    return {cell.id: planned_set(cell, plan, run) for cell in cells}
