"""The gallery: which images it shows, what it says of each, and that text stays text."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from report.hostile_run import REPLIES
from report.readers import gallery_of, gallery_page, in_two, page, write_undrawn
from report.synthetic_run import Json, judgement, make_tables, one_prompt, write_judgements

from autolora_eval._errors import AutoLoRAEvalError, UsageError
from autolora_eval._text import image_link
from autolora_eval.report import gallery_data
from autolora_eval.report.content import build_content
from autolora_eval.report.gallery import build_gallery
from autolora_eval.report.gallery_data import choose_numbers
from autolora_eval.report.run_view import read_run_view
from autolora_eval.runs.folder import RunFolder

pytestmark = pytest.mark.e2e


def data_block(folder: RunFolder) -> str:
    """Return the text of the data block, cut out as a browser would: at the first `</script`."""
    gallery = in_two(folder)[1]
    start = gallery.index('type="application/json">') + len('type="application/json">')
    return gallery[start : gallery.index("</script", start)]


@pytest.mark.parametrize(
    ("prompts", "seeds", "limit", "expected"),
    [
        (8, 8, 120, (8, 8)),  # everything
        (30, 16, 120, (30, 4)),  # Table 2: four cells
        (1, 512, 10, (1, 10)),  # Table 1: 48 cells
        (30, 16, 10, (2, 5)),  # rather five seeds of two prompts than one of ten
        (30, 2, 10, (5, 2)),
        (30, 16, 1, (1, 1)),
        (30, 16, 3, (1, 3)),
    ],
)
def test_the_first_seeds_of_the_first_prompts_are_chosen(prompts, seeds, limit, expected):
    assert choose_numbers(prompts, seeds, limit) == expected


@pytest.mark.parametrize(
    ("constant", "limit", "places"),
    [
        ("IMAGES_SHOWN", 480, 12),
        ("IMAGES_SHOWN", 23, 5),  # 4 cells: 23 // 4
        ("PIXELS_READ", 4 * 64 * 64 * 3, 3),
        ("PIXELS_READ", 1, 1),
        ("BYTES_EMBEDDED", 1, 1),
    ],
)
def test_whatever_is_left_out_is_left_out_of_every_cell(
    tmp_path, monkeypatch, constant, limit, places
):
    monkeypatch.setattr(gallery_data, constant, limit)
    tables = make_tables(n_seeds=6)
    images = gallery_of(tables.write(tmp_path / "run")).data["images"]
    first, *others = (
        [(image["prompt_index"], image["seed"]) for image in images if image["cell"] == cell]
        for cell in range(4)
    )
    assert len(first) == places
    assert others == [first] * 3
    assert {image["file"] for image in images} <= set(tables.scores["file"])


def test_more_images_make_no_more_objects(tmp_path, monkeypatch):
    """What the report looks at one by one is limited: all else stays in columns."""
    monkeypatch.setattr(gallery_data, "IMAGES_SHOWN", 20)
    counts, original = [], pd.DataFrame.to_dict
    for n_seeds in (10, 60):
        tables = make_tables(n_seeds=n_seeds)
        tables.image_size = 8
        view = read_run_view(tables.write(tmp_path / f"{n_seeds}"))
        made: list[int] = []

        def to_dict(table: pd.DataFrame, orient: str, made: list[int] = made) -> Any:
            made.append(len(table))
            return original(table, orient)

        with monkeypatch.context() as counted:
            counted.setattr(pd.DataFrame, "to_dict", to_dict)
            build_content(view)
            build_gallery(view)
        counts.append(sum(made))
    assert counts[0] == counts[1] < 480


def test_the_bytes_of_the_copies_are_limited_by_whole_places(tmp_path, monkeypatch):
    folder = make_tables(n_seeds=4).write(tmp_path / "run")
    sizes = [len(image.thumbnail.uri) for image in gallery_data.shown_images(read_run_view(folder))]
    # Four cells: three places and one byte too little for the fourth.
    monkeypatch.setattr(gallery_data, "BYTES_EMBEDDED", sum(sizes[:16]) - 1)
    assert len(gallery_data.shown_images(read_run_view(folder))) == 12


def test_it_says_which_part_is_shown(tmp_path, monkeypatch):
    tables = make_tables(n_seeds=6)
    tables.scores.loc[[0, 5, 30], "unscored_reason"] = "timeout"
    folder = tables.write(tmp_path / "run")
    assert gallery_of(folder).shown == "All 48 images of the run."
    monkeypatch.setattr(gallery_data, "IMAGES_SHOWN", 16)
    found = gallery_of(folder)
    assert found.shown == (
        "16 of the run's 48 images, to keep this file small: the first of 2 prompts and the first "
        "4 of 6 seeds of 4 cells. scores.parquet lists all images. 1 of the 3 unscored images are "
        "shown."
    )
    assert found.data["total"] == 48


def test_more_cells_than_images_can_be_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery_data, "IMAGES_SHOWN", 3)
    found = gallery_of(make_tables(n_seeds=2).write(tmp_path / "run"))
    assert [image["cell"] for image in found.data["images"]] == [0, 1, 2]
    assert "the first of 2 prompts and the first of 2 seeds of the first 3 cells" in found.shown


def test_hostile_text_goes_into_the_data_and_out_again_char_for_char(hostile):
    block = data_block(hostile)
    assert not set("<>&\u2028\u2029\x00") & set(block)
    found = {image["file"]: image["replies"] for image in json.loads(block)["images"]}
    scores = pd.read_parquet(hostile.scores)
    for n, (file, reason) in enumerate(scores[["file", "unscored_reason"]].to_numpy()):
        assert pd.notna(reason) or found[file][0]["raw"] == REPLIES[n % len(REPLIES)]
    gallery = gallery_page(hostile)
    # Two elements: the data and the script.
    assert [script.get("type") for script in gallery.all("script")] == ["application/json", None]
    assert [a for _, a in gallery.tags if any(key.startswith("on") for key in a)] == []
    assert gallery.open == []


def test_only_the_gallerys_own_script_may_run(judged):
    rest, gallery = in_two(judged)
    script = gallery[gallery.rindex("<script>") + 8 : gallery.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = rest[rest.index("default-src") : rest.index('">', rest.index("default-src"))]
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    for written in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert written not in script


def test_each_picture_is_in_the_file_once(hostile):
    images = json.loads(data_block(hostile))["images"]
    listed = [image["src"] for image in gallery_page(hostile).all("img")]
    assert (len(images), len(listed)) == (192, 48)
    assert [image["picture"] for image in images[:48]] == [""] * 48
    everything = listed + [image["picture"] for image in images[48:]]
    # The images of the synthetic run differ, each from each.
    assert len(set(everything)) == 192
    gallery = in_two(hostile)[1]
    assert all(gallery.count(uri) == 1 for uri in everything)
    assert "plain list of the first 48" in gallery


def test_missing_broken_and_outside_images_say_why(tmp_path):
    tables = one_prompt(n_seeds=4)
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    folder = tables.write(tmp_path / "run")
    files = list(tables.scores["file"])
    (folder.path / files[0]).unlink()
    whole = (folder.path / files[1]).read_bytes()
    (folder.path / files[1]).write_bytes(whole[: len(whole) // 2])
    (folder.path / files[2]).write_bytes(b"\x89PNG no image at all")
    tables.scores.loc[3, "file"] = "../secret.png"
    tables.scores.loc[4, "file"] = None
    tables.scores.to_parquet(folder.scores)
    write_undrawn(folder)
    images = {image["file"]: image for image in gallery_of(folder).data["images"]}
    outside = "'../secret.png' points outside its folder"
    reasons = ("missing image", "corrupt image", "corrupt image", outside)
    for n, (file, reason) in enumerate(zip([*files[:3], "../secret.png"], reasons, strict=True)):
        assert images[file]["absent"] == reason
        assert reason in gallery_page(folder).text
        assert f"seed {n}: {reason}" in page(folder).text  # in the grids
    assert len(gallery_page(folder).all("img")) == 3


def test_everything_to_find_an_image_is_listed(tmp_path):
    tables = one_prompt(n_seeds=2)
    tables.scores["pc_expected"] = [3.25, np.nan, np.nan, np.nan]
    tables.scores.loc[1, ["pc", "sa"]] = np.nan
    tables.scores.loc[1, "unscored_reason"] = "missing_score:sa"
    first, _, second, _ = gallery_of(tables.write(tmp_path / "run")).data["images"]
    assert dict(first["facts"]) == {
        "Prompt": "one",
        "Seed": "0",
        "Model": "SDXL",
        "Method": "LoRA",
        "Prompt correspondence (PC)": "3.5 (range 0 to 5); expected score 3.250",
        "Style adherence (SA)": "4.5 (range 0 to 5)",
        "NFE": "40",
        "File": "images/SDXL--LoRA/p0/0.png",
        "SHA-256": "0" * 64,
    }
    assert first["reason"] is None
    assert first["scores"] == [3.5, 4.5]
    assert dict(second["facts"])["Unscored"] == second["reason"] == "missing score: sa"
    assert dict(second["facts"])["Style adherence (SA)"] == "–"
    assert second["scores"] == [None, None]


def test_a_swept_parameter_is_a_filter_and_a_fact(tmp_path):
    tables = one_prompt(n_seeds=2)
    for table in (tables.table, tables.scores):
        table["method"] = "LoRA"
    for cell, scale in zip(tables.manifest["cells"], (0.4, 1.0), strict=True):
        cell["point"] = {"lora_scale": scale}
    found = gallery_of(tables.write(tmp_path / "run"))
    filters = {f.name: list(f.options) for f in found.filters}
    assert filters["cell.lora_scale"] == ["0.4", "1"]
    # One model, one method: nothing to choose.
    assert list(filters) == ["cell.lora_scale", "seed", "judgement"]
    assert found.data["facets"] == ["cell.model", "cell.method", "cell.lora_scale"]
    assert found.data["cells"] == [["SDXL", "LoRA", "0.4"], ["SDXL", "LoRA", "1"]]
    assert dict(found.data["images"][1]["facts"])["LoRA scale"] == "1"


def test_without_a_judge_there_is_nothing_about_scores(unjudged):
    found = gallery_of(unjudged)
    assert [f.name for f in found.filters] == ["prompt", "cell.method", "seed"]
    assert list(found.orders) == ["prompt", "seed", "cell"]
    assert all(image["replies"] == [] for image in found.data["images"])
    names = [field.get("name") for field in gallery_page(unjudged).all("select")]
    assert names == ["prompt", "cell.method", "seed", "sort"]
    assert gallery_page(unjudged).all("input") == []


def test_a_link_names_an_image_by_its_file():
    file = "images/SDXL--LoRA+CFG/50% of a \u2603 #1/0.png"
    link = image_link(file)
    assert link.isascii()
    assert not set(link.removeprefix("#image=")) & set(" #&=?\"<>'")
    assert unquote(link.removeprefix("#image=")) == file


def test_images_of_the_grids_link_to_the_gallery_where_it_has_them(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery_data, "IMAGES_SHOWN", 4)
    tables = make_tables(prompts=("one",), n_seeds=2)
    folder = write_undrawn(tables.write(tmp_path / "run"))
    links = [link["href"] for link in page(folder).all("a")]
    first = tables.scores[tables.scores["seed"] == 0]
    of_images = {link for link in links if not link.startswith("#gallery&")}
    assert of_images == {image_link(file) for file in first["file"]}


def one_image(path: Path, *rows: Json, repeats: int = 1) -> list[Json]:
    """Return the replies that the gallery shows for the one image of a run with these rows."""
    tables = one_prompt(n_seeds=1)
    tables.manifest["judge"]["repeats"] = repeats
    folder = tables.write(path)
    image = tables.scores.iloc[0]
    write_judgements(folder, [("SDXL--LoRA", judgement(image, **row)) for row in rows])
    replies: list[Json] = gallery_of(folder).data["images"][0]["replies"]
    return replies


def test_replies_are_those_of_the_runs_judge_to_the_image_as_it_is(tmp_path):
    (found,) = one_image(
        tmp_path / "run",
        {"raw": "another judge", "judge_key": "other"},
        {"raw": "another picture", "sha256": "1" * 64},
        {"raw": "first try", "scores": None, "reason": "http_500"},
        {"raw": "second try", "attempt": 2},
        {"raw": "last", "judge_key": "other"},
    )
    assert found == {
        "about": "a-judge, attempt 2, 0.25 s, PC 3.5, SA 4.5",
        "raw": "second try",
        "note": "",
    }


def test_each_repeat_is_shown_up_to_five(tmp_path):
    rows = [{"repeat": n, "raw": f"reply {n}"} for n in (1, 0, 2, 3, 4, 5, 6)]
    found = one_image(tmp_path / "run", *rows, repeats=7)
    assert [reply["raw"] for reply in found] == [*(f"reply {n}" for n in range(5)), None]
    assert found[0]["about"].startswith("a-judge, reply 1 of 7, attempt 1")
    assert found[5]["about"] == "2 more replies: judgements/SDXL--LoRA.jsonl"
    # Repeats that are no longer asked for do not count, and are not shown.
    (only,) = one_image(tmp_path / "fewer", *rows)
    assert (only["raw"], "reply 1 of" in only["about"]) == ("reply 0", False)


def test_an_unscored_reply_tells_why(tmp_path):
    cached = {"scores": None, "reason": "out_of_range:pc", "cached": True}
    (read,) = one_image(tmp_path / "a", cached)
    said = "a-judge, from the cache of earlier replies, unscored: out of range: pc"
    assert read["about"] == said
    (failed,) = one_image(tmp_path / "b", {"scores": None, "reason": "timeout", "raw": None})
    assert failed["about"].endswith("unscored: timeout, no reply")
    assert failed["raw"] is None
    (none,) = one_image(tmp_path / "c")
    assert none["about"] == "judgements/SDXL--LoRA.jsonl has no reply to this image."


def test_a_long_reply_is_cut_and_says_so(tmp_path):
    (found,) = one_image(tmp_path / "run", {"raw": "x" * 2001})
    assert found["raw"] == "x" * gallery_data.RAW_LENGTH
    note = "The first 2,000 of 2,001 characters; the rest is in judgements/SDXL--LoRA.jsonl."
    assert found["note"] == note
    (whole,) = one_image(tmp_path / "other", {"raw": "x" * 2000})
    assert whole["note"] == ""


def test_a_damaged_file_of_judgements_is_refused_with_its_line(tmp_path):
    folder = one_prompt(n_seeds=1).write(tmp_path / "run")
    folder.judgements("x").parent.mkdir()
    folder.judgements("SDXL--LoRA").write_text("{not json}\n")
    with pytest.raises(AutoLoRAEvalError, match=r"SDXL--LoRA\.jsonl:1: not a judgement"):
        gallery_of(folder)


def test_judgements_outside_the_run_folder_are_not_read(tmp_path):
    tables = one_prompt(n_seeds=1)
    tables.table["cell"] = tables.scores["cell"] = "../../secret"
    folder = tables.write(tmp_path / "run")
    secret = judgement(tables.scores.iloc[0], raw="secret")
    (tmp_path / "secret.jsonl").write_text(json.dumps(secret) + "\n")
    with pytest.raises(UsageError, match="points outside its run folder"):
        gallery_of(folder)
