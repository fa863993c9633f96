"""`plan --no-code` lists what a benchmark of someone else would do, and does none of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from command import run_command


def test_a_third_party_benchmark_is_listed_and_not_run(
    write_benchmark: Callable[[object], Path], benchmark_data: dict[str, Any], workplace: Path
) -> None:
    ran = workplace / "ran"
    code = f"open({str(ran)!r}, 'w')\nclass Mine: ...\n"
    (workplace / "theirs_no_code.py").write_text(code)
    benchmark_data["methods"]["Mine"] = {"guider": "theirs_no_code.Mine", "strength": 2}
    benchmark_data["features"] = {"extractor": "theirs_no_code:Extractor"}
    benchmark_data["diversity"] = ["vendi", "theirs_no_code.metric"]
    benchmark_data["models"]["A"]["pipeline"] = "owner/model"
    benchmark_data["models"]["A"]["lora"]["path"] = "${HOME}/lora.safetensors"
    benchmark_data["judge"] |= {"base_url": "http://there/v1"}
    file = write_benchmark(benchmark_data)
    listed = run_command("plan", file, "--no-code")
    beside = "beside the file or installed"
    assert (listed.code, listed.stdout.splitlines()) == (
        0,
        [
            f"import: the Python code 'theirs_no_code.Mine', {beside} (methods.Mine)",
            f"import: the Python code 'theirs_no_code:Extractor', {beside} (features.extractor)",
            f"import: the Python code 'theirs_no_code.metric', {beside} (diversity)",
            "read: prompts.txt",
            "read: rubric.yaml",
            "fetch: 'owner/model' from the hub, unless a folder is called so",
            "read: ${HOME}/lora.safetensors",
            "send: images, prompts, the rubric and the key in AUTOLORA_EVAL_JUDGE_API_KEY, if it "
            "is set, to http://there/v1",
            "read: the variable HOME",
            "write: reports/small, or what --output names",
        ],
    )
    benchmark_data["judge"] |= {"launch": True, "launch_command": ["sh", "-c", f"touch {ran}"]}
    listed = run_command("plan", write_benchmark(benchmark_data), "--no-code")
    assert f"start: sh -c touch {ran}" in listed.stdout
    assert not ran.exists()
