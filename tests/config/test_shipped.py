"""The shipped benchmarks: the paper's own, counted by hand, and their twins in miniature."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from conftest import save_lora

from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import make_plan
from autolora_eval.config.stage_inputs import cell_record
from autolora_eval.generation.preflight import hub_sources
from autolora_eval.sources.lookup import shipped_benchmarks
from autolora_eval.sources.model_source import Source

pytestmark = pytest.mark.model

# Shipped names: the paper's experiment, and its twin.
DISNEY = ("disney_princess", "disney_princess_cfg", "disney_princess_autolora_scale")
TWINS = {name: f"{name}_miniature" for name in ("pixel_art", "limited_interval", *DISNEY)}

OURS = (
    *("quickstart", "trading_cost_miniature"),
    *("trading_cost_search_miniature", "guiders_miniature"),
)


@pytest.mark.parametrize("name", shipped_benchmarks())
def test_a_shipped_benchmark_loads_from_anywhere(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    plan = make_plan(load_benchmark(name))
    assert plan.benchmark.spec.name == name
    assert plan.benchmark.file == shipped_benchmarks()[name].resolve()
    assert plan.benchmark.spec.baseline_method in plan.benchmark.methods
    n_jobs = len(plan.benchmark.prompts) * plan.benchmark.spec.seeds.count
    assert plan.n_images == len(plan.cells) * n_jobs == plan.n_judge_calls


def test_there_is_no_other():
    """A benchmark of the paper that is added needs a twin here."""
    assert set(shipped_benchmarks()) == {*OURS, *TWINS, *TWINS.values()}


# Cells, images, and denoiser passes counted by hand: images of each method × passes × steps.
COUNTED = {
    # 2 models × 2 methods × 30 prompts × 16 seeds. CFG makes two passes a step and AutoLoRA with
    # CFG four, on SDXL in 50 steps and on SD3 in 28.
    "pixel_art": (4, 1_920, 480 * (2 + 4) * (50 + 28)),
    # 12 LoRA scales × 4 methods × 512 seeds: LoRA one pass a step, AutoLoRA two, LoRA+CFG two,
    # AutoLoRA+CFG four, in 50 steps: 12 · 512 · 50 · 9.
    "disney_princess": (48, 24_576, 2_764_800),
    # 4 LoRA scales × 7 CFG scales × 2 methods × 512 seeds: two and four passes.
    "disney_princess_cfg": (56, 28_672, 4 * 7 * 512 * 50 * (2 + 4)),
    # 4 LoRA scales × (LoRA, LoRA+CFG, and each AutoLoRA at three scales) × 512 seeds.
    "disney_princess_autolora_scale": (32, 16_384, 4 * 512 * 50 * (1 + 2 + 3 * 2 + 3 * 4)),
    # CFG and eight intervals × 30 prompts × 16 seeds. Two passes more at a guided step, of which
    # the intervals have 50, 12, 25, 37, 37 − 12, 50 − 12, 50 − 25 and 50 − 37 of 50.
    "limited_interval": (9, 4_320, 480 * (9 * 100 + 2 * (50 + 12 + 25 + 37 + 25 + 38 + 25 + 13))),
}


@pytest.mark.parametrize("name", COUNTED)
def test_what_the_papers_benchmarks_cost(name):
    plan = make_plan(load_benchmark(name))
    cells, images, passes = COUNTED[name]
    assert len(plan.cells) == cells
    assert plan.n_images == plan.n_judge_calls == images
    assert plan.nfe == passes
    assert {cell.model.size for cell in plan.cells} == {(1024, 1024)}
    # SDXL's pictures of 1024² are PNGs of 1.3 to 1.7 bytes a pixel; features and replies are
    # some kilobytes beside them.
    assert (plan.disk_bytes - images * 10_000) / (images * 1024**2) >= 1.3
    assert (plan.disk_bytes - images * 4_000) / (images * 1024**2) <= 1.7


SDXL, DINOV2 = "stabilityai/stable-diffusion-xl-base-1.0", "facebook/dinov2-giant"
SD3 = "stabilityai/stable-diffusion-3-medium-diffusers"


@pytest.mark.parametrize("name", TWINS)
def test_what_the_papers_benchmarks_fetch(name):
    found = {source.location for source, _ in hub_sources(make_plan(load_benchmark(name)))}
    disney = "loras/all_disney_princess_xl.safetensors"
    lora = disney if name in DISNEY else "nerijs/pixel-art-xl"
    sd3 = {SD3, "nerijs/pixel-art-medium-128-v0.1"} if name == "pixel_art" else set()
    assert found == {SDXL, DINOV2, lora} | sd3


@pytest.mark.parametrize("name", TWINS)
def test_what_the_paper_states_is_in_its_benchmarks(name):
    """DESIGN.md, section 4: extractor, judge, and the scores' greedy decoding."""
    benchmark = load_benchmark(name)
    judge = benchmark.spec.judge
    assert benchmark.spec.features.model == DINOV2
    assert judge.model == "meta-llama/Llama-3.2-11B-Vision-Instruct"
    assert (judge.temperature, judge.repeats, benchmark.spec.seeds.start) == (0.0, 1, 0)
    princess = name in DISNEY
    assert len(benchmark.prompts) * benchmark.spec.seeds.count == (512 if princess else 30 * 16)
    assert list(benchmark.rubric.scores) == (["cps"] if princess else ["pc", "sa"])
    assert benchmark.spec.baseline == ("LoRA+CFG" if princess else "CFG")
    assert benchmark.published is not None
    for model in benchmark.models.values():
        assert model.spec.guidance_scale == {"SDXL": 5.0, "SD3": 7.0}[model.name]
        assert model.spec.num_inference_steps == {"SDXL": 50, "SD3": 28}[model.name]
        assert model.spec.negative_prompt == ""
        assert model.spec.lora.scale == 1.0


def columns(name: str, method: str, *wanted: str) -> list[tuple[Any, ...]]:
    """The values of some columns of a method's cells, in order."""
    cells = make_plan(load_benchmark(name)).cells
    found = [cell.columns for cell in cells if cell.method.name == method]
    return list(dict.fromkeys(tuple(row.get(key) for key in wanted) for row in found))


def test_pixel_art_is_the_papers_table_2():
    keys = ("lora_scale", "guidance_scale", "base_guidance_scale", "autolora_scale")
    assert columns("pixel_art", "CFG", *keys) == [(1.0, 5.0, None, None), (1.0, 7.0, None, None)]
    assert columns("pixel_art", "AutoLoRA", *keys) == [(1.0, 5.0, 5.0, 1.5), (1.0, 7.0, 7.0, 1.5)]


def test_disney_princess_is_the_papers_table_1():
    plan = make_plan(load_benchmark("disney_princess"))
    assert plan.benchmark.prompts == ("Anna",)
    scales = [n / 10 for n in range(2, 14)]
    found = [(cell.columns["lora_scale"], cell.method.name) for cell in plan.cells]
    methods = ("LoRA", "AutoLoRA", "LoRA+CFG", "AutoLoRA+CFG")
    assert found == list(itertools.product(scales, methods))
    for cell in plan.cells:
        w = cell.columns.get("guidance_scale", 1.0)
        assert w == cell.columns.get("base_guidance_scale", w)
        assert w == (5.0 if cell.method.name.endswith("+CFG") else 1.0)
        assert cell.columns.get("autolora_scale", 1.5) == 1.5


def test_disney_princess_cfg_is_the_papers_figure_2():
    """CFG from 3.5 to 6.5; w1 follows w2. LoRA scales are those of Figures 1, 6 and 7."""
    scales = list(itertools.product([0.4, 0.7, 1.0, 1.3], [3.5, 4.0, 4.5, 5.0, 5.5, 6.0, 6.5]))
    name, keys = "disney_princess_cfg", ("lora_scale", "guidance_scale")
    assert columns(name, "LoRA+CFG", *keys) == scales
    both = columns(name, "AutoLoRA+CFG", *keys, "base_guidance_scale", "autolora_scale")
    assert both == [(lora, w, w, 1.5) for lora, w in scales]


def test_disney_princess_autolora_scale_is_the_papers_figure_4():
    scales = list(itertools.product([0.4, 0.7, 1.0, 1.3], [1.5, 1.75, 2.0]))
    name, keys = "disney_princess_autolora_scale", ("lora_scale", "autolora_scale")
    assert columns(name, "AutoLoRA", *keys, "guidance_scale") == [(*s, 1.0) for s in scales]
    assert columns(name, "AutoLoRA+CFG", *keys, "guidance_scale") == [(*s, 5.0) for s in scales]
    for method in ("LoRA", "LoRA+CFG"):
        assert columns(name, method, *keys) == [(s, None) for s in (0.4, 0.7, 1.0, 1.3)]


@pytest.mark.parametrize("name", DISNEY)
def test_a_lora_that_must_be_got_first_is_absent_until_it_is_there(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AUTOLORA_EVAL_DISNEY_LORA", raising=False)

    def only_lora() -> Source:
        (model,) = load_benchmark(name).models.values()
        return model.loras[0].source

    lora = only_lora()
    assert lora.kind == "absent"
    assert lora.how_to_get() == (
        'Log in at https://civitai.com/models/212532 ("All Disney Princess XL LoRA Model from '
        'Ralph Breaks the Internet") and download its .safetensors. Save it as '
        f"{tmp_path}/loras/all_disney_princess_xl.safetensors, or set "
        "AUTOLORA_EVAL_DISNEY_LORA to its path."
    )
    file = save_lora(tmp_path / lora.location)
    assert (only_lora().kind, only_lora().path) == ("file", file)
    elsewhere = save_lora(tmp_path / "elsewhere.safetensors")
    monkeypatch.setenv("AUTOLORA_EVAL_DISNEY_LORA", str(elsewhere))
    assert only_lora().path == elsewhere


def test_only_a_lora_that_says_how_to_get_it_may_be_absent(plan_of, load, benchmark_data, problem):
    data = benchmark_data
    data["models"]["A"]["lora"] = {"path": "mine.safetensors"}
    assert "models.A.lora: no such LoRA: 'mine.safetensors'." in problem(data)
    data["models"]["A"]["lora"]["obtain"] = "Ask Ann."
    benchmark = load(data)
    (lora,) = benchmark.models["A"].loras
    assert lora.source.how_to_get() == f"Ask Ann. Save it as {Path.cwd()}/mine.safetensors."
    data["models"]["A"]["lora"]["path"] = "mine.ckpt"
    assert "is a pickle" in problem(data)
    # How to get it decides no number: a finished run stays finished.
    save_lora(benchmark.file.parent / "mine.safetensors")
    data["models"]["A"]["lora"]["path"] = "mine.safetensors"
    keys = []
    for advice in ("Ask Ann.", "Ask Bob.", None):
        data["models"]["A"]["lora"]["obtain"] = advice
        plan = plan_of(data)
        keys.append([cell_record(cell, plan).plan_key for cell in plan.cells])
    assert keys[0] == keys[1] == keys[2]


@pytest.mark.parametrize("paper", TWINS)
def test_a_twin_asks_what_the_paper_asks(paper):
    """The same methods, baseline, crossing and scores, so that the two cannot drift apart."""
    large, small = load_benchmark(paper), load_benchmark(TWINS[paper])
    assert list(small.spec.methods.items()) == list(large.spec.methods.items())
    assert small.spec.baseline == large.spec.baseline
    assert list(small.models) == [f"{name} miniature" for name in large.models]
    assert list(small.rubric.scores.items()) == list(large.rubric.scores.items())
    assert list(small.spec.sweep) == list(large.spec.sweep)
    for parameter, values in large.spec.sweep.items():
        # 3 is to the miniatures what 5 is to SDXL: CFG scales are those of the paper times 0.6.
        factor = 0.6 if parameter == "guidance_scale" else None
        wanted = values if factor is None else [pytest.approx(factor * w) for w in values]
        assert small.spec.sweep[parameter] == wanted
    for model in small.models.values():
        assert model.spec.guidance_scale == 3.0
        assert model.spec.lora.scale == large.models[model.name.split()[0]].spec.lora.scale
    shape = [(cell.method.name, list(cell.point)) for cell in make_plan(large).cells]
    assert [(cell.method.name, list(cell.point)) for cell in make_plan(small).cells] == shape


@pytest.mark.parametrize("name", [*OURS, *TWINS.values()])
def test_the_miniature_benchmarks_need_nothing_from_the_network(name):
    benchmark = load_benchmark(name)
    assert not benchmark.spec.device.startswith("cuda")
    sources = [benchmark.features, benchmark.judge]
    sources += [model.pipeline for model in benchmark.models.values()]
    sources += [lora.source for model in benchmark.models.values() for lora in model.loras]
    for source in sources:
        assert source.path.exists()


@pytest.mark.parametrize("name", [*OURS[:-1], *TWINS.values()])
def test_the_miniature_benchmarks_are_small(name):
    """Two cores make about 250 passes of the SDXL miniature a second: none takes five minutes."""
    plan = make_plan(load_benchmark(name))
    assert plan.nfe <= 5 * 60 * 250
    # A cell's diversity over seeds has an interval from three images on; over prompts, too.
    assert plan.benchmark.spec.seeds.count >= 4
