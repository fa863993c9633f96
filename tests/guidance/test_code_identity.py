"""Third-party code is told apart by its sources, and by all that they import from beside them."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import pytest
from packages import CLASS, refusal

from autolora_eval.guidance.method_registry import resolve_method
from autolora_eval.plugins.third_party import load_dotted, third_party_frame

pytestmark = pytest.mark.e2e


def imported_anew(path: str) -> str:
    """The hash of a guider's code, after its modules are read again."""
    start = path[:5]
    for name in [name for name in sys.modules if name.startswith(start)]:
        del sys.modules[name]
    return resolve_method("guider", path).code["sha256"]


def test_code_of_one_version_is_identified_by_its_sources(site: Path) -> None:
    path, package = "pack_mod.guiders.A", site / "pack_mod"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "guiders.py").write_text(CLASS.format(name="A", doc="x"))
    first = imported_anew(path)
    assert imported_anew(path) == first
    (package / "helpers.py").write_text("FACTOR = 2\n")  # what its guider may import
    second = imported_anew(path)
    (package / "guiders.py").write_text(CLASS.format(name="A", doc="y"))
    assert len({first, second, imported_anew(path)}) == 3


def test_code_that_was_changed_after_its_import_is_refused(site: Path) -> None:
    """Its images would be the old code's, under the key of the new."""
    text = CLASS.format(name="A", doc="x") + "    def twice(self):\n        return {}\n"
    (site / "edited_mod.py").write_text(text.format(2))
    resolve_method("guider", "edited_mod.A")
    (site / "edited_mod.py").write_text(text.format(3))
    message = "edited_mod.py changed after it was imported. Restart Python"
    assert message in refusal("guider", "edited_mod.A")
    (site / "edited_mod.py").write_text(text.format(2))
    resolve_method("guider", "edited_mod.A")


def test_a_base_class_in_another_package_is_part_of_the_code(site: Path) -> None:
    (site / "base_mod.py").write_text(CLASS.format(name="B", doc="x"))
    (site / "top_mod.py").write_text("from base_mod import B\nclass A(B):\n    'x'\n")
    before = resolve_method("guider", "top_mod.A").code["sha256"]
    (site / "base_mod.py").write_text(CLASS.format(name="B", doc="x") + "\n\nFACTOR = 2\n")
    assert resolve_method("guider", "top_mod.A").code["sha256"] != before


USES_HELPER = "from {helper} import f\nfrom diffusers.guiders import ClassifierFreeGuidance\n\n"


def helped(site: Path, name: str, helper: str) -> None:
    text = CLASS.format(name="A", doc="x")
    (site / f"{name}.py").write_text(USES_HELPER.format(helper=helper) + text)


def test_modules_that_a_file_imports_from_its_folder_are_part_of_the_code(site: Path) -> None:
    """Images that an edited helper would change are made anew, however far it is."""
    path = "help_guider.A"
    helped(site, "help_guider", "help_near")
    (site / "help_near.py").write_text(
        "def f(x):\n    from help_far.deep import g\n    return g(x)"
    )
    (site / "help_far").mkdir()
    (site / "help_far" / "deep.py").write_text("def g(x):\n    return x")
    found = [imported_anew(path)]
    assert imported_anew(path) == found[0]
    (site / "help_near.py").write_text("import help_far.deep\ndef f(x):\n    return 2 * x")
    found.append(imported_anew(path))
    (site / "help_far" / "deep.py").write_text("def g(x):\n    return 3 * x")
    found.append(imported_anew(path))
    assert len(set(found)) == 3


def test_a_helper_that_was_changed_after_its_import_is_refused(site: Path) -> None:
    helped(site, "stale_guider", "stale_helper")
    (site / "stale_helper.py").write_text("def f(x):\n    return x\n")
    resolve_method("guider", "stale_guider.A")
    (site / "stale_helper.py").write_text("def f(x):\n    return 2 * x\n")
    assert "stale_helper.py changed after it was imported" in refusal("guider", "stale_guider.A")


def test_a_partial_is_identified_by_its_function_and_arguments(site: Path) -> None:
    text = (
        "from functools import partial\n"
        "def make(factor, prompt, seed, model, *, power=1.0): ...\n"
        "once, twice = partial(make, 1), partial(partial(make, 2), power=2.0)\n"
        "listed = partial(make, [3, {'a': make}])\n"
    )
    (site / "partial_mod.py").write_text(text)
    once, twice = (resolve_method("sampler", f"partial_mod.{name}") for name in ("once", "twice"))
    assert once.code["class"] == twice.code["class"] == "partial_mod.make"
    assert once.source == "partial_mod.py"
    assert once.display_name == "make"
    assert once.code["sha256"] == twice.code["sha256"]
    assert once.code["arguments"] == "[[1]]"
    assert twice.code["arguments"] == '[[2, "power", 2.0]]'
    listed = resolve_method("sampler", "partial_mod.listed")
    assert listed.code["arguments"] == '[[[3, {"a": "partial_mod.make"}]]]'


def test_an_error_is_located_in_third_party_code_and_not_in_what_that_calls(site: Path) -> None:
    text = "import statistics\n\ndef mean():\n    return statistics.mean([])\n"
    (site / "mean_mod.py").write_text(text)
    with pytest.raises(statistics.StatisticsError) as caught:
        load_dotted("mean_mod.mean")()
    frame = third_party_frame(caught.value)
    assert frame is not None
    assert (Path(frame.filename).name, frame.lineno) == ("mean_mod.py", 4)
