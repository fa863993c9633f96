"""The benchmark that `score --images` writes takes over what decides the scores."""

import pytest
import yaml

from autolora_eval._errors import UsageError
from autolora_eval.config.starter import image_set_benchmark


@pytest.fixture
def write(load, benchmark_data, workplace):
    """A function that returns the benchmark of the image set `mine`, as data."""
    for name in ("mine", "theirs"):
        (workplace / name).mkdir()
    benchmark_data["methods"]["Theirs"] = {"images": "theirs", "nfe": 4}

    def write(name: str = "Mine", **sections: object) -> dict[str, object]:
        loaded = load(benchmark_data | sections)
        file = workplace / "run" / "benchmark.yaml"
        return yaml.safe_load(image_set_benchmark(loaded, workplace / "mine", name, None, file))

    return write


def test_the_set_takes_the_place_of_the_methods(write):
    assert write()["methods"] == {"Mine": {"images": "../mine"}}


def test_a_reference_set_stays_a_method(write):
    written = write(diversity=["coverage"], diversity_reference="Theirs")
    theirs = {"images": "../theirs", "nfe": 4}
    assert written["methods"] == {"Mine": {"images": "../mine"}, "Theirs": theirs}
    assert written["diversity_reference"] == "Theirs"


@pytest.mark.parametrize(
    ("reference", "name", "message"),
    [
        ("CFG", "Mine", "the diversity_reference 'CFG' makes its images with a model, which"),
        ("Theirs", "Theirs", "'Theirs' is the benchmark's reference set. Choose another --name."),
    ],
)
def test_a_reference_that_cannot_stay_is_refused(write, reference, name, message):
    with pytest.raises(UsageError, match=message):
        write(name, diversity=["coverage"], diversity_reference=reference)
