"""The judge's settings together: what fits, and the place and words of what does not."""

from collections.abc import Callable

import pytest
import yaml

from autolora_eval._errors import UsageError
from autolora_eval.config.load import load_benchmark

STYLE = "prompts/rubrics/style.yaml"
COMMAND = ["uvx", "--from", "vllm==0.10.2", "vllm", "serve", "{model}", "--port", "{port}"]


@pytest.fixture
def lines(write_benchmark, benchmark_data, workplace) -> Callable[..., list[str]]:
    """What is wrong with a benchmark whose judge has these settings, without the file's name."""
    (workplace / "vlm").mkdir()
    (workplace / "vlm" / "config.json").write_text("{}")
    (workplace / "vlm" / "model.safetensors").write_bytes(
        (workplace / "dino" / "model.safetensors").read_bytes()
    )

    def load(**settings: object) -> list[str]:
        judge = {"rubric": "rubric.yaml", "model": "vlm", **settings}
        path = write_benchmark({**benchmark_data, "judge": judge})
        try:
            load_benchmark(path)
        except UsageError as error:
            found = str(error).split("\n")
            assert all(line.startswith(f"{path}:") for line in found)
            return [line.removeprefix(f"{path}:") for line in found]
        return []

    return load


OPENAI_JUDGES: list[dict[str, object]] = [
    {"base_url": "https://a.example/v1"},
    {"base_url": ["http://a:8000/v1"]},
    {"base_url": ["http://a:8000/v1", "http://a:8001/v1", "http://[::1]:8000/v1"]},
    {"repeats": 5, "temperature": 0},
    {"repeats": 5, "temperature": 0.7},
    {"launch": True, "vllm_python": "venv/bin/python"},
    {"launch": True, "vllm_python": "p", "launch_args": ["--max-model-len", "8192"]},
    {"launch": True, "vllm_python": "p", "launch_timeout": 60},
    {"launch": True, "launch_command": COMMAND},
    {"launch": True, "launch_command": COMMAND, "base_url": "http://a:8000/v1"},
    {"launch": True, "launch_command": [*COMMAND, "-e", "HF_TOKEN"]},  # a key's name
    {"launch": True, "launch_command": [*COMMAND, '{"image": 1}', "{}", "{model}:{name}:{port}"]},
    *(
        {"constraint": name}
        for name in ("auto", "structured_outputs", "guided_regex", "response_format", "plain")
    ),
]
JUDGES_HERE: list[dict[str, object]] = [
    {"batch_size": 4, "dtype": "float32"},
    {"launch": False, "vllm_python": None, "launch_command": []},
    *({"constraint": name} for name in ("auto", "regex", "plain")),
]


@pytest.mark.parametrize(
    "settings",
    [*OPENAI_JUDGES, *({"backend": "transformers", **one} for one in JUDGES_HERE)],
    ids=str,
)
def test_what_fits(lines, settings):
    assert lines(**settings) == []


TRANSFORMERS = "has no effect with backend 'transformers'. Remove it, or set 'backend: openai'."
OPENAI = "has no effect with backend 'openai'. Remove it, or set 'backend: transformers'."
ALONE = "has an effect only with 'launch: true'. Add that, or remove this key."
AN_ADDRESS = "expected an address such as http://localhost:8000/v1 "
A_KEY = "written to the manifest. Use an environment variable."
TWO = ["http://a/v1", "http://b/v1"]
LAUNCH = {"launch": True, "vllm_python": "p"}
# Settings, the key that is named, and the end of its line.
BAD: list[tuple[dict[str, object], str, str]] = [
    ({"base_url": "a:8000"}, "base_url", f"{AN_ADDRESS}(got 'a:8000')."),
    ({"base_url": "http:///v1"}, "base_url", f"{AN_ADDRESS}(got 'http:///v1')."),
    ({"base_url": "http://[::1"}, "base_url", f"{AN_ADDRESS}(got 'http://[::1')."),
    ({"base_url": [*TWO, "ftp://b/v1"]}, "base_url.2", f"{AN_ADDRESS}(got 'ftp://b/v1')."),
    ({"base_url": [*TWO, TWO[0]]}, "base_url.2", "/v1' is the same as entry 1. Remove one."),
    ({"base_url": [*TWO, f"{TWO[0]}/"]}, "base_url.2", "/v1/' is the same as entry 1. Remove one."),
    ({"base_url": []}, "base_url", "at least 1 item after validation, not 0."),
    (
        {"launch": True},
        "launch",
        "also set what to start: vllm_python, the Python of vLLM's environment, or launch_command.",
    ),
    (
        LAUNCH | {"launch_command": COMMAND},
        "launch_command",
        "cannot be combined with judge.vllm_python. Remove one of them.",
    ),
    (
        LAUNCH | {"base_url": TWO},
        "base_url",
        "there are 2 addresses, but 'launch: true' starts one server at an address of its own. "
        "Remove them, or remove launch.",
    ),
    (
        {"launch": True, "launch_command": ["serve", "{model}"]},
        "launch_command",
        "lacks '{port}', the placeholder for the port of the server. Add, for example: "
        "--port, '{port}'.",
    ),
    (
        {"launch": True, "launch_command": ["serve", "{modle}", "-p={port}"]},
        "launch_command.1",
        "unknown placeholder '{modle}'. Did you mean '{model}'?",
    ),
    (
        {"launch": True, "launch_command": ["serve", "x{gpus}y", "{port}"]},
        "launch_command.1",
        "unknown placeholder '{gpus}'. Known: {model}, {port}, {name}.",
    ),
    *(
        (LAUNCH | {"launch_args": ["x", part]}, "launch_args.1", A_KEY)
        for part in ("--api-key=sentinel", "--api_key", "HF_TOKEN=hf_sentinel")
    ),
    (
        {"launch": True, "launch_command": [*COMMAND, "--env=VLLM_API_KEY=sentinel"]},
        f"launch_command.{len(COMMAND)}",
        A_KEY,
    ),
    *(
        ({"api_key_env": key}, "api_key_env", "written to the manifest.")
        for key in ("sk-sentinel", "hf_sentinel", "MY KEY=sentinel", "$SENTINEL_KEY")
    ),
    ({"vllm_python": "python"}, "vllm_python", ALONE),
    ({"launch_command": COMMAND}, "launch_command", ALONE),
    ({"launch_args": ["--x"]}, "launch_args", ALONE),
    ({"launch_timeout": 9}, "launch_timeout", ALONE),
    ({"launch": False, "vllm_python": "p"}, "vllm_python", ALONE),
    ({"constraint": "grammar"}, "constraint", "(got 'grammar')."),
    (
        {"constraint": "regex"},
        "constraint",
        "'regex' is not for backend 'openai'. Expected auto, structured_outputs, guided_regex, "
        "response_format or plain.",
    ),
    *(
        (
            {"backend": "transformers", "constraint": name},
            "constraint",
            f"'{name}' is not for backend 'transformers'. Expected auto, regex or plain.",
        )
        for name in ("structured_outputs", "guided_regex", "response_format")
    ),
    *(
        ({"backend": "transformers", key: value}, key, TRANSFORMERS)
        for key, value in {
            "base_url": "http://a/v1",
            "api_key_env": "KEY",
            "concurrency": 4,
            "timeout": 5,
            "max_retries": 0,
            "give_up_after": 0,
            "launch": True,
            "vllm_python": "python",
            "launch_command": COMMAND,
            "launch_args": ["--x"],
            "launch_timeout": 9,
        }.items()
    ),
    ({"batch_size": 4}, "batch_size", OPENAI),
    ({"dtype": "float16"}, "dtype", OPENAI),
]


@pytest.mark.parametrize(("settings", "key", "says"), BAD)
def test_what_does_not_fit_is_named_with_its_place(lines, line_of, settings, key, says):
    (line,) = lines(**settings)
    assert "sentinel" not in line
    number, place, message = line.split(": ", 2)
    assert place == f"judge.{key}"
    assert message.endswith(says)
    if "." not in key:
        assert int(number) == line_of(key)


def test_every_problem_is_reported(lines):
    found = lines(
        base_url=["a", "http://b/v1", "http://me:sentinel@c/v1", "http://d/v1?key=sentinel"],
        constraint="regex",
        batch_size=3,
        launch=True,
        rubric_values={"x": "y"},
    )
    assert [line.split(": ")[1] for line in found] == [
        "judge.batch_size",
        "judge.constraint",
        "judge.base_url.0",
        "judge.base_url.2",
        "judge.base_url.3",
        "judge.launch",
        "judge.base_url",
        "judge.rubric_values",
    ]
    assert not any("sentinel" in line for line in found)


def test_the_benchmark_names_the_style(load, benchmark_data):
    judge = {**benchmark_data["judge"], "rubric": STYLE}
    rubric, other = (
        load({**benchmark_data, "judge": {**judge, "rubric_values": {"style": style}}}).rubric
        for style in ("{a} <b>", "oil")
    )
    assert "in this style: {a} < b>.\n" in rubric.question("a cat").after
    assert other.sha256 != rubric.sha256


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"rubric": STYLE},
            ": the rubric 'style' needs a value for 'style': write 'rubric_values: {st",
        ),
        ({"rubric": STYLE, "rubric_values": {"stile": "x"}}, "'stile'. Did you mean 'style'?"),
        (
            {"rubric_values": {"style": "oil"}},
            "no placeholder 'style'. It has none; remove the value.",
        ),
        (
            {"rubric": STYLE, "rubric_values": {"style": 3}},
            ".style: expected text; put it in quotation",
        ),
        ({"rubric": STYLE, "rubric_values": {"style": ""}}, ".style: "),
        ({"rubric": STYLE, "rubric_values": {"style": " \n"}}, "needs a value for 'style'"),
        ({"rubric_values": {"x": " "}}, "the rubric 'r' has no placeholder 'x'."),
    ],
)
def test_a_wrong_value_of_a_rubric_is_refused(lines, settings, says):
    (line,) = lines(**settings)
    assert says in line.partition(": judge.rubric_values")[2]


@pytest.mark.parametrize(
    "url",
    [
        "http://sentinel@a/v1",
        "me:sentinel@a/v1",
        "https://a/v1?key=sentinel",
        "https://a/v1#sentinel",
        "http://me:sentinel@[::1/v1",
    ],
)
def test_a_key_in_an_address_is_refused_and_not_repeated(lines, url):
    (line,) = lines(base_url=url)
    assert "judge.base_url: the address must not contain a user name or key" in line
    assert "sentinel" not in line


def test_the_command_in_the_readers_yaml(lines):
    """In a flow list `{port}` needs quotation marks; without them YAML makes a mapping of it."""
    command = yaml.safe_load("[vllm, serve, '{model}', --port, '{port}']")
    assert lines(launch=True, launch_command=command) == []
    (line,) = lines(launch=True, launch_command=yaml.safe_load("[vllm, --port, {port}]"))
    assert "judge.launch_command.2: " in line
