"""Helpers that judge the images of a run with a server, and read the judgements."""

from __future__ import annotations

from contextlib import closing

from json_lines import read_jsonl
from judge_server import Call
from scored_run import judge_plan

from autolora_eval._files import Json
from autolora_eval.config.plan import Plan
from autolora_eval.config.stage_inputs import judge_settings
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.records import JudgeRecord
from autolora_eval.scoring.judging import open_judge

N = 12  # 2 cells × 3 prompts × 2 seeds
SECRET = "sentinel-key-0451"


def judge(plan: Plan, folder: RunFolder) -> JudgeRecord:
    with closing(open_judge(judge_settings(plan))) as asked:
        return judge_plan(plan, folder, asked)


def rows(plan: Plan, folder: RunFolder) -> list[Json]:
    return [row for cell in plan.cells for row in read_jsonl(folder.judgements(cell.id))]


def outcome(plan: Plan, folder: RunFolder) -> dict[tuple[str, str], tuple[object, object]]:
    """Return the scores and reason of each image."""
    return {
        (cell.id, row["image_id"]): (row["scores"], row["reason"])
        for cell in plan.cells
        for row in read_jsonl(folder.judgements(cell.id))
    }


def by_content(call: Call, n: int) -> str:
    """Return a reply that depends only on the image; some replies have no scores."""
    digit = int(call.sha256[0], 16)
    return f'{{"pc": {digit % 7}}}' if digit < 14 else "I cannot tell."
