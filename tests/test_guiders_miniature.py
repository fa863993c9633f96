"""Third-party guiders beside ours, from one YAML file: one table and one report."""

from __future__ import annotations

import sys

import pytest
import yaml
from json_lines import read_jsonl
from pypdf import PdfReader

import autolora_eval
from autolora_eval.analysis.explain import explain
from autolora_eval.sources.lookup import shipped_benchmarks

pytestmark = pytest.mark.e2e

STEPS = 4
GUIDER_FILE = '''
from diffusers.configuration_utils import register_to_config
from diffusers.guiders import ClassifierFreeGuidance


class EarlyGuidance(ClassifierFreeGuidance):
    """CFG in the first steps alone."""

    @register_to_config
    def __init__(self, guidance_scale: float = 4.0, last: float = 0.5):
        super().__init__(guidance_scale=guidance_scale, stop=last)
'''


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> autolora_eval.runs.folder.Run:
    """The shipped benchmark in few steps, with a guider from a file beside it."""
    folder = tmp_path_factory.mktemp("guiders")
    (folder / "own_guider_for_test.py").write_text(GUIDER_FILE)
    content = yaml.safe_load(shipped_benchmarks()["guiders_miniature"].read_text())
    content["models"]["SDXL miniature"]["num_inference_steps"] = STEPS
    content["methods"]["Mine"] = {"guider": "own_guider_for_test.EarlyGuidance", "last": 0.25}
    path = folder / "guiders.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        return autolora_eval.run(path, folder / "run", limit_prompts=1)


def test_all_methods_are_in_one_table_with_their_nfe(run) -> None:
    # CFG evaluates the denoiser twice per guided step and once otherwise, AutoLoRA+CFG four times.
    expected = {
        "LoRA+CFG": 2 * STEPS,
        "AutoLoRA+CFG": 4 * STEPS,
        "APG": 2 * STEPS,
        "CFG-Zero*": 2 * STEPS,
        "TCFG": 2 * STEPS,
        "Mine": STEPS + 1,
    }
    table = run.table.set_index("method")
    assert table["nfe"].to_dict() == expected
    assert table["n_missing"].tolist() == table["n_unscored"].tolist() == [0] * 6
    assert table["guidance_scale"].dropna().tolist() == [3.0] * 6, "one CFG scale for all"
    for metric in ("diversity", "pc", "sa", "div_pc", "div_sa"):
        assert table[metric].notna().all()
    compared = run.comparisons.query("baseline == 'LoRA+CFG'")["method"]
    assert set(compared) == expected.keys() - {"LoRA+CFG"}


def test_each_method_makes_different_images(run) -> None:
    images = [
        {row["sha256"] for row in read_jsonl(run.folder.metadata(cell))}
        for cell in run.table["cell"]
    ]
    assert len(set.union(*images)) == sum(map(len, images)) == 6 * 2


def test_the_report_names_the_methods_with_code_and_papers(run) -> None:
    page = run.folder.report_html.read_text(encoding="utf-8")
    text = " ".join(
        "".join(p.extract_text() for p in PdfReader(run.folder.report_pdf).pages).split()
    )
    for name in run.table["method"]:
        assert name in page
        assert name in text
    for text_of_code in (
        "own_guider_for_test.EarlyGuidance",
        "arXiv 2410.02416",
        "arXiv 2503.18886",
    ):
        assert text_of_code in page
    methods = run.manifest.methods
    mine, apg = methods["Mine"].code, methods["APG"].code
    assert mine["class"] == "own_guider_for_test.EarlyGuidance"
    assert mine["sha256"][:12] in page, "which of its versions it was"
    assert apg["distribution"] == f"diffusers {run.manifest.packages['diffusers']}"
    assert run.manifest.methods["LoRA+CFG"].code == {}


def test_explain_shows_the_code_behind_a_cell(run) -> None:
    summary = explain(run.folder.path, "SDXL-miniature--Mine").sections[0].values
    code = run.manifest.methods["Mine"].code
    assert summary["code"] == f"{code['class']}, sources SHA-256 {code['sha256']}"
    assert summary["formula"] == "not given"
    assert summary["NFE per image"] == str(STEPS + 1)
