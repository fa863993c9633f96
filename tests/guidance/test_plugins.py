"""Methods by name and by path: found, or refused with the cause, and never in each other's way."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from packages import CLASS, refusal, write_package
from PIL import Image
from pydantic import ValidationError
from rich.console import Console

from autolora_eval import FigureData
from autolora_eval._errors import UsageError
from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import make_plan
from autolora_eval.guidance.catalogue import INSTALLED, catalogue
from autolora_eval.guidance.method_registry import GUIDERS, resolve_method
from autolora_eval.guider_checks.runner import all_checks, check_command
from autolora_eval.report.figures._base import draw_figures, figure_kinds
from autolora_eval.scoring.extractor import Loading

pytestmark = pytest.mark.e2e


def test_a_guider_of_an_installed_package_is_found_by_its_name(installed: Path) -> None:
    rule = resolve_method("guider", "fading")
    assert rule.display_name == "FadingGuidance"
    assert rule.summary == "Classifier-free guidance whose scale falls linearly."
    assert rule.source == "arXiv 2404.13040; example-plugins 0.3.1"
    assert list(rule.parameters.model_fields) == ["guidance_scale", "last_scale"]
    assert rule.code["class"] == "example_plugins.fading.FadingGuidance"
    assert rule.code["distribution"] == "example-plugins 0.3.1"
    assert len(rule.code["sha256"]) == 64
    parameters = rule.parameters.model_validate({"last_scale": 2}).with_model_defaults(3.0)
    assert parameters.model_dump() == {"guidance_scale": 3.0, "last_scale": 2.0}
    assert rule.nfe(parameters, 7) == 14


def test_a_guider_of_an_installed_package_is_checked_by_its_name(installed) -> None:
    console = Console(file=io.StringIO(), width=100)
    kept = check_command("fading", ["guidance_scale=3.0"], "sd3", console, Console(quiet=True))
    shown = console.file.getvalue()
    assert kept, shown
    # It has no window, and is for no pipeline that prepares inputs in another way.
    assert f"fading on a tiny SD3: {len(all_checks()) - 2} passed, 2 skipped" in shown
    with pytest.raises(UsageError, match=r"'broken' of example-plugins 0\.3\.1 .* is broken"):
        check_command("broken", [], "sd3", console, Console(quiet=True))
    with pytest.raises(UsageError, match="It is a sampler"):
        check_command("clipped_noise", [], "sd3", console, Console(quiet=True))


def test_a_sampler_of_an_installed_package_is_found_by_its_name(installed: Path) -> None:
    rule = resolve_method("sampler", "clipped_noise")
    assert rule.parameters.model_validate({}).model_dump() == {"limit": 2.0}
    assert rule.nfe(rule.parameters(), 7) is None
    assert "write 'sampler: clipped_noise'" in refusal("guider", "clipped_noise")
    assert "write 'guider: fading'" in refusal("sampler", "fading")


def test_a_broken_method_is_reported_with_its_package_and_cause(installed: Path) -> None:
    assert refusal("guider", "broken") == (
        "the guider 'broken' of example-plugins 0.3.1 (example_plugins.broken.BrokenGuidance) is "
        "broken: 'example_plugins.broken.BrokenGuidance' cannot be imported: "
        "ModuleNotFoundError: No module named 'a_package_that_nobody_has' (broken.py, line 3)."
    )


def test_a_package_cannot_take_a_built_in_name(installed: Path) -> None:
    assert resolve_method("guider", "cfg") is GUIDERS.find("cfg")
    listed = {(one.name, one.kind): one for one in catalogue() if one.group == INSTALLED}
    assert listed["cfg", "guider"].problem == (
        "'cfg' is built in. Name example_plugins.fading.FadingGuidance of example-plugins 0.3.1 by "
        "its dotted path."
    )
    assert resolve_method("guider", "example_plugins.fading.FadingGuidance").name.endswith(
        "Guidance"
    )
    assert listed["fading", "guider"].problem == ""
    assert listed["clipped_noise", "sampler"].problem == ""
    assert "is broken: " in listed["broken", "guider"].problem
    assert listed["broken", "guider"].source == "example-plugins 0.3.1"


def test_two_packages_with_one_method_name_are_both_named_and_refused(site: Path) -> None:
    for package in ("one", "two"):
        path = f"{package}_mod:Boost"
        entry = f"[autolora_eval.methods]\nboost = {path}\nof_{package} = {path}\n"
        write_package(
            site, package, entry, **{f"{package}_mod": CLASS.format(name="Boost", doc="x")}
        )
    assert refusal("guider", "boost") == (
        "several packages offer a guider called 'boost': one_mod.Boost of one 1.0, two_mod.Boost "
        "of two 1.0. Name the one you mean by its dotted path, or uninstall the others."
    )
    assert resolve_method("guider", "of_two").code["class"] == "two_mod.Boost"
    assert resolve_method("guider", "two_mod.Boost").display_name == "Boost"


@pytest.mark.parametrize(
    ("module", "cause"),
    [
        (
            "X = 5\n",
            "'thing' is a value of type int, not a subclass of diffusers.guiders.BaseGuidance",
        ),
        ("def X(a): ...\n", "'thing' is a function, not a subclass of"),
        ("class X: ...\n", "'thing' is a class, not a subclass of"),
        ("raise SystemExit(3)\n", "cannot be imported: SystemExit: 3 (odd_mod.py, line 1)"),
        ("1 / 0\n", "cannot be imported: ZeroDivisionError: division by zero (odd_mod.py, line 1)"),
        ("def (:\n", "cannot be imported: SyntaxError: invalid syntax (odd_mod.py, line 1)"),
        ("Y = 1\n", "AttributeError: module 'odd_mod' has no attribute 'X'"),
    ],
)
def test_a_broken_package_is_reported_and_affects_no_other(site, module, cause) -> None:
    write_package(site, "odd", "[autolora_eval.methods]\nthing = odd_mod:X\n", odd_mod=module)
    assert refusal("guider", "thing").startswith("the guider 'thing' of odd 1.0 (odd_mod.X) is")
    assert cause in refusal("guider", "thing")
    assert resolve_method("guider", "autolora") is GUIDERS.find("autolora")


def test_a_package_can_declare_a_method_as_the_built_in_ones_are(site: Path) -> None:
    declared = (
        "from dataclasses import replace\n"
        "from autolora_eval.guidance.methods.cfg import METHOD as CFG\n"
        "def build(parameters):\n    return CFG.build(parameters)\n"
        "METHOD = replace(CFG, name='mine', equation='2 ε', build=build)\n"
    )
    write_package(site, "own", "[autolora_eval.methods]\nours = own_mod:METHOD\n", own_mod=declared)
    rule = resolve_method("guider", "ours")
    assert (rule.name, rule.equation) == ("ours", "2 ε")
    assert rule.nfe_per_step is not None
    assert rule.code["distribution"] == "own 1.0"
    assert rule.code["class"] == "own_mod.METHOD"
    assert "sha256" in rule.code


def test_a_module_beside_the_benchmark_needs_no_installation(tmp_path: Path) -> None:
    (tmp_path / "beside_for_test.py").write_text(CLASS.format(name="Near", doc="Near by."))
    rule = resolve_method("guider", "beside_for_test.Near", (tmp_path,))
    assert (rule.summary, rule.source) == ("Near by.", "beside_for_test.py")
    assert "distribution" not in rule.code


def test_a_module_beside_the_benchmark_does_not_replace_a_library(tmp_path: Path) -> None:
    (tmp_path / "diffusers.py").write_text("raise RuntimeError('taken')\n")
    rule = resolve_method(
        "guider", "diffusers.guiders.TangentialClassifierFreeGuidance", (tmp_path,)
    )
    assert rule.display_name == "TCFG"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("my_pakage.MyGuider", "no module 'my_pakage'."),
        ("diffuser.guiders.X", "no module 'diffuser'. Did you mean 'diffusers'?"),
        (
            "diffusers.guiders.TangentialClasifierFreeGuidance",
            "no 'TangentialClasifierFreeGuidance'. Did you mean 'TangentialClassifierFreeGuidance'",
        ),
        ("diffusers.guidres.X", "Did you mean 'guiders'?"),
        ("TangentialClassifierFreeGuidance", "Did you mean 'diffusers.guiders.Tangential"),
        ("fadng", "Did you mean 'fading'?"),
        (
            "zzz",
            f"Known: {', '.join(GUIDERS.built_in())}, broken, cfg, fading. A dotted path such as",
        ),
        ("os.path.join", "A function (prompt, seed, model) → image is named by 'sampler:'"),
        (".x", "is not a dotted path such as"),
        ("./my.py:MyGuider", "names a file. Name its module and class, such as 'my_module."),
        ("a..b", "is not a dotted path such as"),
        ("a b.c", "is not a dotted path such as"),
    ],
)
def test_an_unknown_name_is_answered_with_the_next_step(installed, given, message) -> None:
    assert message in refusal("guider", given)


def test_a_second_module_of_one_name_in_a_process_is_refused(tmp_path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "twin_for_test.py").write_text(CLASS.format(name="A", doc=f"{name}."))
    assert resolve_method("guider", "twin_for_test.A", (tmp_path / "one",)).summary == "one."
    message = refusal("guider", "twin_for_test.A", (tmp_path / "other",))
    assert message.startswith("the module 'twin_for_test' was already imported from '")
    assert "Restart Python" in message
    assert resolve_method("guider", "twin_for_test.A", (tmp_path / "one",)).summary == "one."


def test_a_file_that_an_installed_module_hides_is_named(tmp_path: Path) -> None:
    (tmp_path / "calendar.py").write_text(CLASS.format(name="A", doc="x"))
    message = refusal("guider", "calendar.A", (tmp_path,))
    assert f"The installed module 'calendar' hides '{tmp_path / 'calendar.py'}'" in message
    assert "hides" not in refusal("guider", "calendar.A")


def test_a_plan_without_third_party_methods_imports_none_of_them(installed: Path) -> None:
    make_plan(load_benchmark("quickstart"))
    assert "example_plugins" not in sys.modules


def test_a_benchmark_mixes_third_party_and_built_in_methods(
    installed, planned, benchmark_data
) -> None:
    benchmark_data["methods"] |= {
        "Fading": {"guider": "fading", "last_scale": 2},
        "By path": {"guider": "example_plugins.fading.FadingGuidance"},
        "Clipped": {"sampler": "clipped_noise", "limit": 1.5},
        "APG": {
            "guider": "diffusers.guiders.AdaptiveProjectedGuidance",
            "adaptive_projected_guidance_norm_dim": [-1, -2],
        },
    }
    found = {cell.method.name: cell for cell in planned().cells}
    nfe = {name: found[name].nfe for name in ("Fading", "By path", "Clipped", "APG")}
    assert nfe == {"Fading": 20, "By path": 20, "Clipped": None, "APG": 20}
    assert found["Fading"].columns["guidance_scale"] == 5.0, "the model's, for a fair comparison"
    assert found["Fading"].columns["guider"] == "fading"
    assert found["Clipped"].columns["sampler"] == "clipped_noise"
    assert found["Clipped"].columns["limit"] == 1.5
    assert found["APG"].columns["adaptive_projected_guidance_norm_dim"] == "[-1, -2]"
    built = found["APG"].method.definition.build(found["APG"].parameters)
    assert tuple(built.adaptive_projected_guidance_norm_dim) == (-1, -2)


DIFFUSERS = "diffusers.guiders"
REFUSED = (
    ": AdaptiveProjectedGuidance refuses these values: Expected `stop` to be between 0.5 and 1.0, "
    "but got 0.2."
)
WRONG = """
from diffusers.guiders import BaseGuidance

class Bare(BaseGuidance):
    _input_predictions = ["pred_cond"]
    num_conditions = is_conditional = prepare_inputs = forward = None

    def __init__(self):
        super().__init__()

made = Bare()
"""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"guider": "fading", "last_scal": 2},
            ".last_scal: unknown key. Did you mean 'last_scale'?",
        ),
        (
            {"guider": "fading", "last_scale": "two"},
            ".last_scale: expected a valid number (got 'two')",
        ),
        ({"sampler": "clipped_noise", "limt": 2}, ".limt: unknown key. Did you mean 'limit'?"),
        ({"guider": f"{DIFFUSERS}.AdaptiveProjectedGuidance", "start": 0.5, "stop": 0.2}, REFUSED),
        (
            {"guider": f"{DIFFUSERS}.MagnitudeAwareGuidance"},
            f": on 'A' (StableDiffusionXLPipeline): {DIFFUSERS}.",
        ),
        ({"guider": "fading", "sampler": "clipped_noise"}, ".sampler: a method cannot have both"),
        ({"guider": None}, ".guider: missing; name a guider, such as 'guider: autolora'."),
        (
            {"guider": "wrong_for_test.made"},
            ".guider: 'wrong_for_test.made' is a value of type Bare, ",
        ),
        (
            {"guider": "wrong_for_test.made"},
            "Name its class, Bare, and give the parameters as keys.",
        ),
        (
            {"guider": "wrong_for_test.Bare"},
            ": Bare has no config. Decorate its __init__ with @reg",
        ),
        ({"guider": "broken"}, ".guider: the guider 'broken' of example-plugins 0.3.1"),
    ],
)
def test_a_mistake_is_one_line_before_any_model_loads(
    installed, problem, benchmark_data, tmp_path, given, message
) -> None:
    (tmp_path / "wrong_for_test.py").write_text(WRONG)
    benchmark_data["methods"]["New"] = given
    assert message in problem(benchmark_data).partition(": methods.New")[2]


EXITS = """
import sys
from diffusers.guiders import ClassifierFreeGuidance

class Exits(ClassifierFreeGuidance):
    def __init__(self, guidance_scale: float = 7.5):
        sys.exit(0)

class Fails(ClassifierFreeGuidance):
    def __init__(self, guidance_scale: float = 7.5):
        raise RuntimeError("no luck")
"""


def test_a_constructor_that_ends_python_is_reported_and_affects_no_other(site: Path) -> None:
    """Its exit code 0 would otherwise be that of the command."""
    entry = "[autolora_eval.methods]\nexits = exits_mod:Exits\nfails = exits_mod:Fails\n"
    write_package(site, "exits", entry, exits_mod=EXITS)
    listed = {one.name: one for one in catalogue() if one.group == INSTALLED}
    refuses = "at its default parameters, {} refuses these values: "
    ends = "it ends the program (SystemExit: 0)"
    assert listed["exits"].problem == refuses.format("Exits") + ends
    assert listed["exits"].supports == "not declared; autolora-eval check exits"
    assert listed["fails"].problem == refuses.format("Fails") + "no luck"
    rule = resolve_method("guider", "exits_mod.Exits")
    with pytest.raises(ValidationError, match="ends the program"):
        rule.parameters.model_validate({})
    assert rule.nfe(rule.parameters.model_construct(), 4) is None


def test_a_benchmark_uses_a_plugin_of_each_other_kind(installed, planned, benchmark_data) -> None:
    benchmark_data["features"] = {"extractor": "brightness", "cells": 2}
    benchmark_data["diversity"] = ["spread"]
    benchmark_data["judge"]["rubric"] = "example_plugins:cosiness.yaml"
    loaded = planned().benchmark

    kind, parameters = loaded.extractor.kind, loaded.extractor.parameters
    extractor = kind.load(Loading(None, parameters, None, None, 8))  # type: ignore[arg-type]
    vectors = extractor([Image.new("RGB", (8, 8), "white"), Image.new("RGB", (8, 8))])
    assert vectors.tolist() == [[256.0] * 4, [1.0] * 4]
    assert kind.code["distribution"] == "example-plugins 0.3.1"

    assert loaded.diversity["spread"](np.eye(2)).value == pytest.approx(0.5**0.5)
    assert loaded.rubric is not None
    assert [score.display_name for score in loaded.rubric.scores.values()] == ["Cosiness"]


@pytest.mark.parametrize("name", ["example_plugins:cosy.yaml", "example_plugins:../bin/pip"])
def test_a_file_that_a_package_does_not_have_is_reported(
    installed, problem, benchmark_data, name
) -> None:
    benchmark_data["judge"]["rubric"] = name
    assert f"judge.rubric: no such rubric: '{name}'" in problem(benchmark_data)


def test_a_figure_is_drawn_and_a_broken_one_does_not_lose_the_report(
    installed, tmp_path, caplog, monkeypatch
) -> None:
    kinds = [kind for kind in figure_kinds() if kind.origin]
    assert [kind.name for kind in kinds] == ["bars", "broken_bars"], "after the built-in ones"
    monkeypatch.setattr("autolora_eval.report.figures._base.figure_kinds", lambda: kinds)
    table = pd.DataFrame({"cell": ["a", "b"], "diversity": [0.2, 0.3]})
    empty = pd.DataFrame()
    data = FigureData(table, [], {}, {}, empty, empty, empty)
    with caplog.at_level(logging.WARNING):
        (drawn,) = draw_figures(data, tmp_path)
    assert drawn.svg.is_file()
    assert drawn.png.is_file()
    assert "'broken_bars' of example-plugins 0.3.1 failed: RuntimeError: no such column" in (
        caplog.text
    )
