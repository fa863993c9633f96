"""Write the tables of keys in docs/reference/benchmark_file.md from the JSON Schema.

Run: python docs/write_benchmark_file.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent / "reference" / "benchmark_file.md"
SCHEMA = Path(__file__).parents[1] / "benchmarks" / "benchmark.schema.json"
_TABLE = re.compile(r"(<!-- keys: (\w+) -->\n)(?:\n\|.*(?:\n\|.*)*\n)?")


def page() -> str:
    """Return the page's text, with the current table after each `<!-- keys: NAME -->`."""
    text = PAGE.read_text(encoding="utf-8")
    return _TABLE.sub(lambda match: f"{match[1]}\n{table(match[2])}\n", text)


def table(name: str) -> str:
    """Return the Markdown table of the keys of a part, such as `Model`, or of `Benchmark`."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    part = schema if name == "Benchmark" else schema["$defs"][name]
    if "properties" not in part:  # one alternative for each extractor
        part = next(option for option in part["anyOf"] if option["title"] == "transformers")
    rows = ["| key | values | default | meaning |", "| --- | --- | --- | --- |"]
    for key, value in part["properties"].items():
        default = "required" if key in part.get("required", []) else _default(value)
        meaning = " ".join(value.get("description", "").split()).replace("|", "\\|")
        rows.append(f"| `{key}` | {_values(value)} | {default} | {meaning} |")
    return "\n".join(rows)


def _default(value: dict[str, Any]) -> str:
    default = value.get("default")
    if isinstance(default, dict) and default:
        return "see below"
    if default in (None, "", [], {}):
        return ""
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


def _values(value: dict[str, Any]) -> str:
    if "enum" in value:
        return ", ".join(f"`{choice}`" for choice in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    if "$ref" in value:
        return "see below"
    options = value.get("oneOf") or value.get("anyOf")
    if options:
        if value.get("default") is None:  # null is the same as leaving the key out
            options = [option for option in options if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(_values(option) for option in options))
    words = {"integer": "integer", "number": "number", "boolean": "true or false"}
    words |= {"string": "text", "array": "list", "object": "mapping", "null": "`null`"}
    low, high = value.get("minimum"), value.get("maximum")
    high = None if high == 2**53 else high
    if "exclusiveMinimum" in value:
        low = f"above {value['exclusiveMinimum']:g}"
    limits = [f"{bound:g}" if isinstance(bound, float) else f"{bound}" for bound in (low, high)]
    suffix = f", {limits[0]} to {limits[1]}" if low is not None and high is not None else ""
    if low is not None and high is None:
        suffix = f", from {limits[0]}"
    return words.get(value.get("type", ""), "any") + suffix


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
