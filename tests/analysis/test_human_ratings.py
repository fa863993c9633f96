"""Reading people's ratings: the accepted forms, and a message for each problem."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report.synthetic_run import make_tables

from autolora_eval._errors import UsageError
from autolora_eval.analysis.human_ratings import IMAGE, RATER, read_ratings
from autolora_eval.scoring.rubric import Score

SCORES = {
    "pc": Score(key="p", display_name="Prompt correspondence"),
    "sa": Score(key="s", display_name="Style adherence", min=1.0, max=3.0),
}
IMAGES = make_tables(methods=("LoRA", "AutoLoRA")).scores  # 2 cells × 2 prompts × 3 seeds
FILE = "images/SDXL--LoRA/p0/0.png"
PROMPT = '"a castle at night, pixel art"'


def read(tmp_path: Path, content: str | bytes) -> pd.DataFrame:
    path = tmp_path / "human.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_ratings(path, IMAGES, SCORES)


def refused(tmp_path: Path, content: str | bytes) -> list[str]:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, content)
    lines = str(caught.value).splitlines()
    return [line.replace(str(tmp_path / "human.csv"), "human.csv") for line in lines]


@pytest.mark.parametrize(
    "content",
    [
        f"file,pc\n{FILE},3.5\n",
        f"\ufefffile;pc\r\n{FILE};3.5\r\n",
        f"file\tpc\n{FILE}\t3.5\n",
        f"file,rater,pc,sa\n\n{FILE}, ann , 3.5 ,\n,,,\n",
        f"pc,file\n3.50,./{FILE}\n",
        "file,pc\nimages\\SDXL--LoRA\\p0\\0.png,+3.5e0\n",
        f"cell,prompt,seed,pc\nSDXL--LoRA,{PROMPT},0,3.5\n",
        "cell,prompt_index,seed,pc\nSDXL--LoRA,0.0,00,3.5\n",
        "file,cell,prompt,prompt_index,seed,sha256,pc\n"
        f"{FILE},SDXL--LoRA,{PROMPT},0,0,{'0' * 64},3.5",
        f"file,cell,seed,prompt,pc\n{FILE},,,,3.5\n",
    ],
)
def test_an_image_is_named_by_its_file_or_by_its_parts(tmp_path, content):
    found = read(tmp_path, content)
    assert found[IMAGE].tolist() == [0]
    assert found["pc"].tolist() == [3.5]


def test_every_image_is_found_by_either_name(tmp_path):
    by_file = IMAGES[["file"]].assign(pc=1.0)
    by_parts = IMAGES[["cell", "prompt", "seed"]].assign(pc=1.0)
    for frame in (by_file, by_parts):
        found = read(tmp_path, frame.to_csv(index=False))
        assert found[IMAGE].tolist() == list(range(len(IMAGES)))


def test_empty_fields_are_missing_and_not_zero(tmp_path):
    other = FILE.replace("0.png", "1.png")
    found = read(tmp_path, f"file,rater,sa,pc\n{FILE},ann,,0\n{FILE},bob,3,\n{other},ann,,\n")
    assert found[RATER].tolist() == ["ann", "bob", "ann"]
    assert found["pc"].tolist() == pytest.approx([0.0, np.nan, np.nan], nan_ok=True)
    assert found["sa"].tolist() == pytest.approx([np.nan, 3.0, np.nan], nan_ok=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            f"file,pcc\n{FILE},3\n",
            "human.csv: unknown column 'pcc': remove or rename it. Did you mean 'pc'?",
        ),
        (f"file,pc,PC\n{FILE},3,3\n", "human.csv: unknown column 'PC': remove or rename it. "),
        (f"file,pc,pc\n{FILE},3,3\n", "human.csv: unknown column 'pc.1': remove or rename it."),
        (f"file,rater\n{FILE},ann\n", "human.csv: no column of ratings. The judge's scores are: "),
        ("seed,prompt,pc\n0,x,3\n", "human.csv: no column names the rated image: expected"),
        (f"file,pc\n{FILE},good\n", "human.csv:2: pc: 'good' is not a number such as 3 or 3.5."),
        (f'file,pc\n{FILE},"3,5"\n', "human.csv:2: pc: '3,5' is not a number such as 3 or 3.5."),
        (f"file,pc\n{FILE},nan\n", "human.csv:2: pc: nan is out of range"),
        (f"file,pc\n{FILE},6\n", "human.csv:2: pc: 6 is out of range; expected 0 to 5."),
        (f"file,pc\n{FILE},1e999\n", "human.csv:2: pc: 1e999 is out of range"),
        (f"file,sa\n{FILE},0\n", "human.csv:2: sa: 0 is out of range; expected 1 to 3."),
        (
            "file,pc\nimages/x.png,3\n",
            f"human.csv:2: the run has no image 'images/x.png'; expected a path such as '{FILE}'.",
        ),
        (
            "cell,prompt_index,seed,pc\nSDXL--Lora,0,0,3\n",
            "human.csv:2: the run has no cell 'SDXL--Lora'. Did you mean 'SDXL--LoRA'?",
        ),
        (
            "cell,prompt_index,seed,pc\nSDXL--LoRA,0,9,3\n",
            "human.csv:2: the run has no image with cell 'SDXL--LoRA', prompt_index '0', seed '9'.",
        ),
        (
            "cell,prompt_index,seed,pc\nSDXL--LoRA,,0,3\n",
            "human.csv:2: the row does not name an im",
        ),
        (f"file,seed,pc\n{FILE},1,3\n", "human.csv:2: seed is '1', but the image has '0'."),
        (f"file,sha256,pc\n{FILE},{'1' * 64},3\n", f"human.csv:2: sha256 is '{'1' * 64}', but"),
        (f"file,pc\n{FILE},3\n\n{FILE},4\n", "human.csv:4: the image was already rated in line 2"),
        (
            f"file,rater,pc\n{FILE},ann,3\n{FILE},ann,4\n",
            "human.csv:3: the image was already rated by 'ann' in line 2; remove one.",
        ),
        (f"file,rater,pc\n{FILE},,3\n", "human.csv:2: empty rater; expected a name, or no col"),
        (f"file,pc\n{FILE},3\n{FILE},3,4\n", "human.csv: not a CSV file of ratings: "),
        (f'file,pc\n{FILE},"3\n', "human.csv: not a CSV file of ratings: "),
        (f"file;pc\n{FILE};3,5\n", "human.csv:2: pc: '3,5' is not a number such as 3 or 3.5."),
        (f"file|pc\n{FILE}|3\n", "human.csv: unknown column 'file|pc': remove or rename it."),
        ("", "human.csv: not a CSV file of ratings: No columns to parse"),
        (f"file,pc\n{FILE},\n", "human.csv: contains no ratings: columns pc are empty."),
        ("file,pc\n", "human.csv: contains no ratings"),
        ("file,rater,pc\nx,Zoë,3\n".encode("latin-1"), "human.csv: not UTF-8 (byte 0xeb). Save"),
        (f"file,pc\n{FILE},3\n".encode("utf-16"), "human.csv: not UTF-8 (byte 0xff)."),
        ("file,pc\n\x1b[31mred\x1b[0m,3\n", "human.csv:2: the run has no image '\ufffd[31m"),
    ],
)
def test_a_problem_is_reported_with_its_line(tmp_path, content, message):
    lines = refused(tmp_path, content)
    assert len(lines) == 1
    assert lines[0].startswith(message)
    assert "\x1b" not in lines[0]


def test_at_most_ten_problems_are_reported(tmp_path):
    lines = refused(tmp_path, f"file,pc,sa\n{FILE},9,9\nx.png,a,2\n")
    assert [line.split(":")[1] for line in lines] == ["2", "2", "3", "3"]
    many = refused(tmp_path, "file,pc\n" + "x.png,3\n" * 30)
    assert len(many) == 11
    assert many[9].startswith("human.csv:11: ")
    assert many[10] == "Further lines were not checked."


def test_a_missing_file_and_a_folder_are_usage_errors(tmp_path):
    with pytest.raises(UsageError, match=r"Cannot read '.*none\.csv': No such file"):
        read_ratings(tmp_path / "none.csv", IMAGES, SCORES)
    with pytest.raises(UsageError, match=r"Cannot read '"):
        read_ratings(tmp_path, IMAGES, SCORES)
