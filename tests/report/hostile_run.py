"""A judged run in which every text that somebody may write is markup, and its scores are known."""

from pathlib import Path

import numpy as np
import pandas as pd
from report.synthetic_run import judgement, make_tables, write_judgements

from autolora_eval.analysis.human_agreement import write_agreement
from autolora_eval.analysis.reliability import COLUMNS
from autolora_eval.runs.folder import RunFolder, open_run

MARKUP = [
    '#import "data.json": *',
    "#panic() *bold* _it_ @ref <label> $x^2$ [content] // comment",
    "<script>alert('x')</script>",
    "</style></svg><img src=x onerror=alert(1)>",
    '"> onload="alert(1)',
    "$\\{ \\frac{1}{0} $ ${HOME}",
    "{{ 7 * 7 }} {% include 'x' %}",
    "]]> & &amp; &#x3c;",
    "`raw` ```typ #1/0```",
]
HOSTILE = [
    "</script><script>window.pwned = 1</script>",
    "<!-- <script>",
    "]]> {{ 7 * 7 }} &lt; &amp;",
    "'\"><img src=x onerror=window.pwned=1>",
    "javascript:window.pwned=1",
    "\u2028 and \u2029\r\n\ttab \x00 \x1b[31m \u202egnp.exe",
]
REPLIES = [*HOSTILE, "lone \ud800 surrogate"]
CONTROL = "a\x00b\x07c\x1b[31md\u202ee\ud800f\u2028g"
LONG_NAME, LONG_PROMPT = "M" * 80, "x" * 10_000  # no blank to break a line at
MODELS = ("SDXL", HOSTILE[0])
METHODS = ("_mine", MARKUP[1], LONG_NAME, "<b>M</b> & 50%")
REASONS = ("timeout", "missing_score:sa", "<i>x</i> & y")


def write_hostile_run(path: Path) -> RunFolder:
    """Write a run of 192 images, a fifth of them unscored, with repeats and human ratings."""
    prompts = (LONG_PROMPT, *HOSTILE[:3])
    tables = make_tables(models=MODELS, methods=METHODS, prompts=prompts, n_seeds=6)
    manifest, scores, random = tables.manifest, tables.scores, np.random.default_rng(0)
    manifest["benchmark"]["description"] = " ".join([*MARKUP, CONTROL])
    manifest["rubric"]["scores"]["pc"]["display_name"] = "worth\x00 in $y^2$"
    manifest["judge"] |= {"constraint": MARKUP[0], "served_by": MARKUP[7]}
    manifest["methods"][METHODS[3]]["code"] = {"class": "odd.<b>Name</b>", "sha256": "f" * 64}
    scores["pc"] = random.integers(0, 6, len(scores)).astype(float)
    scores["sa"] = random.integers(0, 11, len(scores)) / 2
    lost = random.random(len(scores)) < 0.2
    scores.loc[lost, ["pc", "sa"]] = np.nan
    scores.loc[lost, "unscored_reason"] = random.choice(REASONS, lost.sum())
    # A hostile name does not make a folder: in a real run it is a slug. A file name may be odd.
    cells = list(tables.table["cell"])
    tables.rename_cells({cell: f"cell{n}+" for n, cell in enumerate(cells)})
    places = zip(scores["cell"], scores["prompt_index"], scores["seed"], strict=True)
    scores["file"] = [f"images/{cell}/p {p} #%/{seed}.png" for cell, p, seed in places]
    folder = tables.write(path)
    rows = enumerate(scores.to_dict("records"))
    write_judgements(
        folder,
        [
            (row["cell"], judgement(row, raw=REPLIES[n % len(REPLIES)]))
            for n, row in rows
            if pd.isna(row["unscored_reason"])
        ],
    )
    reliability = [
        {"cell": cell, "score": score, "n_repeated": 6, "reason": MARKUP[6], "unit": MARKUP[4]}
        for cell in (*tables.table["cell"], "all")
        for score in ("pc", "sa")
    ]
    pd.DataFrame(reliability, columns=list(COLUMNS)).to_csv(folder.reliability, index=False)
    human = path.parent / "<img src=x onerror=y>.csv"
    scores[["file"]].assign(pc=1).to_csv(human, index=False)
    write_agreement(open_run(path), human)
    agreement = pd.read_csv(folder.agreement)
    agreement.assign(reason=MARKUP[8]).to_csv(folder.agreement, index=False)
    return folder
