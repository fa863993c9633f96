"""docs/reference/guiders.md and docs/how_to/check_a_guider.md say what the code says."""

from __future__ import annotations

import re

import pytest
import yaml
from conftest import ROOT
from guider_parameters import acting

from autolora_eval.guidance.diffusers_defects import SD3, SDXL
from autolora_eval.guidance.diffusers_guiders import DIFFUSERS_GUIDERS
from autolora_eval.guidance.method_registry import resolve_method
from autolora_eval.guider_checks.runner import all_checks

pytestmark = pytest.mark.e2e

TEXT = (ROOT / "docs" / "reference" / "guiders.md").read_text(encoding="utf-8")
CHECKS = (ROOT / "docs" / "how_to" / "check_a_guider.md").read_text(encoding="utf-8")
ROWS = {
    cells[0]: cells[1:] for cells in re.findall(r"^\| `(\w+)`.*?\| (.*?) \| (.*?) \| ", TEXT, re.M)
}


@pytest.mark.parametrize("name", DIFFUSERS_GUIDERS)
def test_every_guider_is_listed_with_its_source_formula_and_notes(name) -> None:
    declared = DIFFUSERS_GUIDERS[name]
    section = TEXT.partition(f"### {name}\n")[2].partition("\n### ")[0]
    flowing = " ".join(section.split())
    for said in (declared.source, declared.formula, declared.notes):
        assert " ".join(said.split()) in flowing


@pytest.mark.parametrize("name", DIFFUSERS_GUIDERS)
def test_combinations_listed_as_refused_are_refused(name) -> None:
    for pipeline, cell in zip((SDXL, SD3), ROWS[name], strict=True):
        refused = DIFFUSERS_GUIDERS[name].refusal(acting(name, pipeline), pipeline) is not None
        assert refused == (cell == "refused"), (pipeline, cell)


def test_the_table_of_checks_has_every_check_with_its_summary() -> None:
    table = re.findall(r"^\| `(\w+)` \| (.*) \|$", CHECKS.partition("## The checks")[2], re.M)
    checks = all_checks().values()
    assert table == [(one.name, str(one.function.__doc__).splitlines()[0]) for one in checks]


def test_the_examples_name_layers_and_parameters_that_exist() -> None:
    for example in re.findall(r"```yaml\n(.*?)```", TEXT, re.S):
        for given in yaml.safe_load(example)["methods"].values():
            rule = resolve_method("guider", given.pop("guider"))
            rule.parameters.model_validate(given)
