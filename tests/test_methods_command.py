"""`autolora-eval methods`: everything that can be named, what it costs, and what is broken."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path

import diffusers.guiders
import pytest
from command import run_command

from autolora_eval._errors import UsageError
from autolora_eval.guidance import catalogue as _catalogue
from autolora_eval.guidance.catalogue import DIFFUSERS, catalogue, listed_as
from autolora_eval.guidance.diffusers_guiders import DIFFUSERS_GUIDERS

pytestmark = pytest.mark.e2e


@pytest.fixture
def methods(example_package: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A function that runs `autolora-eval methods …` where the example package is installed."""
    monkeypatch.syspath_prepend(example_package)

    def run(*arguments: str) -> str:
        done = run_command("methods", *arguments, width=80)
        assert done.code == 0, done.stderr
        return done.stdout

    return run


def test_the_list_fits_the_terminal_and_names_broken_methods(methods) -> None:
    shown = methods()
    assert max(map(len, shown.splitlines())) <= 80
    text = " ".join(shown.split())
    assert "autolora AutoLoRA: 4 NFE per step" in text
    assert "TangentialClassifierFreeGuidance TCFG: 2 NFE per step; SDXL, SD3" in text
    assert "MagnitudeAwareGuidance MAMBO-G: 2 NFE per step; not SDXL or SD3" in text
    assert "fading FadingGuidance: 2 NFE per step" in text
    assert "clipped_noise clipped_noise, a sampler: NFE counted by the run" in text
    assert "the guider 'broken' of example-plugins 0.3.1" in text
    assert "ModuleNotFoundError: No module named 'a_package_that_nobody_has'" in text
    assert "'cfg' is built in. Name example_plugins.fading.FadingGuidance" in text


def test_json_has_the_same_for_scripts(methods) -> None:
    found = {(one["name"], one["group"]): one for one in json.loads(methods("--json"))}
    assert found["cfg", "built in"]["nfe_per_step"] == [2, 2]
    assert found["cfg", "installed"]["problem"].startswith("'cfg' is built in")
    assert found["fading", "installed"]["parameters"] == [
        {"name": "guidance_scale", "type": "float", "default": "the model's"},
        {"name": "last_scale", "type": "float", "default": "1.0"},
    ]
    assert found["broken", "installed"]["nfe_per_step"] is None
    assert found["clipped_noise", "installed"]["kind"] == "sampler"


def test_every_guider_of_diffusers_is_listed_with_its_constructor_s_parameters() -> None:
    """They are read from the source as text; here they are held against the classes."""
    listed = {one.name: one for one in catalogue() if one.group == DIFFUSERS}
    classes = {
        f"diffusers.guiders.{name}": found
        for name, found in vars(diffusers.guiders).items()
        if isinstance(found, type) and name != "BaseGuidance"
    }
    assert listed.keys() == classes.keys()
    for name, found in classes.items():
        taken = inspect.signature(found).parameters
        assert [parameter.name for parameter in listed[name].parameters] == list(taken)
        for parameter in listed[name].parameters:
            if parameter.name != "guidance_scale":
                assert parameter.default == repr(taken[parameter.name].default)


def test_without_diffusers_its_guiders_are_listed_as_not_installed(monkeypatch) -> None:
    monkeypatch.setattr(_catalogue, "guider_sources", dict)
    listed = [one for one in catalogue() if one.group == DIFFUSERS]
    assert len(listed) == len(DIFFUSERS_GUIDERS)
    assert {one.problem for one in listed} == {"diffusers is not installed"}
    assert {one.nfe_per_step for one in listed} == {None}


def test_one_is_described_by_name_class_or_path(tmp_path: Path) -> None:
    (tmp_path / "listed_for_test.py").write_text(
        "import enum\nclass Ink(enum.Enum):\n    RED = 'red'\n"
        "def sketch(prompt, seed, model, *, lines: int, ink: Ink = Ink.RED):\n    'Draws.'\n"
    )
    short, long, sampler = listed_as(
        [
            "PerturbedAttentionGuidance",
            "diffusers.guiders.PerturbedAttentionGuidance",
            "listed_for_test.sketch",
        ],
        [tmp_path],
    )
    assert short == long
    assert short.nfe_per_step == (2, 3)
    assert short.supports.startswith("SDXL; not SD3: diffusers cannot perturb")
    assert (sampler.kind, sampler.summary, sampler.nfe_per_step) == ("sampler", "Draws.", None)
    lines, ink = sampler.parameters
    assert (ink.type, ink.default) == ("listed_for_test.Ink", "'red'"), "as YAML has it"
    assert (lines.name, lines.type, lines.default) == ("lines", "int", None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("autolroa", "no method 'autolroa'. Did you mean 'autolora'?"),
        ("TangentialClasifierFreeGuidance", "Did you mean 'TangentialClassifierFreeGuidance'?"),
        ("nowhere.Guider", "no module 'nowhere'."),
        ("math.pi", "'math.pi' is a value of type float, not a subclass of"),
        ("os.path.join", "the sampler 'os.path.join' takes (a) by position; its first three"),
        ("builtins.max", "the sampler 'builtins.max' is built in, and Python does not know its"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        listed_as([name])
    assert message in str(caught.value)
