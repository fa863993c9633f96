"""The YAML of a benchmark file: variables, broken files, and files that are no benchmark."""

import pytest

from autolora_eval._errors import UsageError
from autolora_eval._yaml import dump_yaml, parse_yaml
from autolora_eval.config.load import load_benchmark


@pytest.mark.parametrize(
    ("value", "environment", "expected"),
    [
        ("${AUTOLORA_EVAL_URL:-http://here/v1}", None, "http://here/v1"),
        ("${AUTOLORA_EVAL_URL:-http://here/v1}", "", "http://here/v1"),
        ("${AUTOLORA_EVAL_URL:-http://here/v1}", "http://there/v1", "http://there/v1"),
        ("${AUTOLORA_EVAL_URL}/v1", "http://there", "http://there/v1"),
        ("http://${AUTOLORA_EVAL_URL:-a}:${AUTOLORA_EVAL_URL:-b}/v1", None, "http://a:b/v1"),
        ("http://$AUTOLORA_EVAL_URL", "there", "http://$AUTOLORA_EVAL_URL"),
    ],
)
def test_variables_are_filled_in(load, benchmark_data, monkeypatch, value, environment, expected):
    monkeypatch.delenv("AUTOLORA_EVAL_URL", raising=False)
    if environment is not None:
        monkeypatch.setenv("AUTOLORA_EVAL_URL", environment)
    benchmark_data["judge"]["base_url"] = value
    judge = load(benchmark_data).spec.judge
    assert judge.base_urls == [expected]
    assert judge.base_url == value, "the manifest has what the file states"


def test_a_variable_that_is_not_set_is_named_with_its_place(problem, benchmark_data, monkeypatch):
    monkeypatch.delenv("AUTOLORA_EVAL_URL", raising=False)
    benchmark_data["judge"]["base_url"] = "${AUTOLORA_EVAL_URL}"
    line = problem(benchmark_data)
    assert ": judge.base_url: the environment variable AUTOLORA_EVAL_URL is not set." in line
    assert line.endswith("${AUTOLORA_EVAL_URL:-value}.")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", ": expected 'key: value' lines"),
        ("- a\n- b\n", ": expected 'key: value' lines"),
        ("just words", ": expected 'key: value' lines"),
        ("name: [unclosed", ": not valid YAML: line 1: "),
        ("name: x\n\tseeds: 3\n", ": not valid YAML: line 2: "),
        ("name: a: b\n", ": not valid YAML: line 1: "),
        ("name: !!python/object/apply:os.getcwd []\n", ": not valid YAML: line 1: "),
        ("? [a, b]\n: 1\n", ": not valid YAML: line 1: "),
        ("name: \x01\n", ": not valid YAML: unacceptable character"),
        ("name: !!timestamp 2024-13-45\n", ": not valid YAML: month must be in 1..12"),
        ("name: &a [*a]\n", ": nested too deeply, or an alias that holds itself."),
        ("[" * 5000, ": nested too deeply, or an alias that holds itself."),
        ("name: a\nseeds: {}\nname: b\n", ":3: name: this key is also on line 1,"),
        ("models:\n  A: {x: 1}\n  B: {}\n  A: {}\n", ":4: models.A: this key is also on line 2,"),
        ("prompts:\n- a: 1\n  a: 2\n", ":3: prompts.0.a: this key is also on line 2,"),
    ],
)
def test_a_file_that_is_not_a_benchmark_is_refused(problem, text, says):
    assert says in problem(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("1e-3", 0.001), ("5E1", 50.0), ("-.5", -0.5), ("1.", 1.0), ("1_000", 1000)],
        *[("010", 10), ("0x1F", 31), ("-7", -7), (".inf", float("inf")), ("2.5e+3", 2500.0)],
        *[("'1e-3'", "1e-3"), ("1:30", "1:30"), ("2024-01-01", "2024-01-01"), ("e5", "e5")],
        *[("1.2.3", "1.2.3"), ("yes", True), ("~", None)],
    ],
)
def test_numbers_are_those_of_yaml_1_2(text, value):
    found = parse_yaml(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("text", ["1e-3", "010", "12e5", "1:30", "2024-01-01", "yes", "0x1F"])
def test_texts_that_look_like_values_are_written_in_quotation_marks(text):
    assert parse_yaml(dump_yaml({"name": text})) == {"name": text}


def test_aliases_that_would_fill_the_memory_are_refused(problem):
    """Nine lists of nine aliases each stand for 9⁹ entries."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    assert problem("\n".join(lines)).endswith("more than 1000000 entries, aliases written out.")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: caf\xe9\n", r"bench\.yaml: not UTF-8 \(byte 9\)"),
        (b"#" * 4_000_001, "larger than 4000000 bytes"),
    ],
    ids=["not UTF-8", "too large"],
)
def test_a_file_that_is_not_read(workplace, content, message):
    (workplace / "bench.yaml").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        load_benchmark("bench.yaml")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        *((name, "is neither a file nor a shipped name") for name in ("nowhere.yaml", "x" * 300)),
        *((name, "is a folder without a manifest.json") for name in ("sdxl", "")),
    ],
)
def test_no_such_benchmark(workplace, name, message):
    with pytest.raises(UsageError, match=message):
        load_benchmark(name)
