"""The gallery: which images it shows, what it says of each, and that text stays text."""

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from report.judged_gallery import gallery_of, judgement, write_judgements
from report.readers import gallery_page, in_two, page, reported
from report.synthetic_run import Tables

from autolora_eval._text import image_link
from autolora_eval.report import gallery_data as gallery_images
from autolora_eval.report import write_report
from autolora_eval.report.content import build_content
from autolora_eval.report.gallery import build_gallery
from autolora_eval.report.gallery_data import ImageKey, choose_image_keys
from autolora_eval.report.run_view import read_run_view
from autolora_eval.runs.folder import RunFolder

pytestmark = pytest.mark.e2e

Maker = Callable[..., Tables]
Json = dict[str, Any]

HOSTILE = [
    "</script><script>window.pwned = 1</script>",
    "<!-- <script>",
    "]]> {{ 7 * 7 }} &lt; &amp;",
    "'\"><img src=x onerror=window.pwned=1>",
    "javascript:window.pwned=1",
    "\u2028 and \u2029\r\n\ttab \x00 \x1b[31m \u202egnp.exe",
]


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
def test_the_first_seeds_of_the_first_prompts_are_chosen(
    prompts: int, seeds: int, limit: int, expected: tuple[int, int]
) -> None:
    places = [
        ImageKey(prompt, seed) for prompt in range(prompts) for seed in range(100, 100 + seeds)
    ]
    chosen = choose_image_keys(places, limit)
    n_prompts, n_seeds = expected
    assert chosen == [ImageKey(p, 100 + s) for p in range(n_prompts) for s in range(n_seeds)]


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
    tmp_path: Path,
    make_run: Maker,
    monkeypatch: pytest.MonkeyPatch,
    constant: str,
    limit: int,
    places: int,
) -> None:
    monkeypatch.setattr(gallery_images, constant, limit)
    tables = make_run(prompts=("one", "two"), n_seeds=6)
    images = gallery_of(tables.write(tmp_path / "run")).data["images"]
    by_cell = {
        cell: [(i["prompt_index"], i["seed"]) for i in images if i["cell"] == cell]
        for cell in range(4)
    }
    assert len(by_cell[0]) == places
    assert all(found == by_cell[0] for found in by_cell.values())
    assert {i["file"] for i in images} <= set(tables.scores["file"])


def test_more_images_make_no_more_objects(
    tmp_path: Path, make_run: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the report looks at one by one is limited: all else stays in columns."""
    monkeypatch.setattr(gallery_images, "IMAGES_SHOWN", 20)
    counts, original = [], pd.DataFrame.to_dict
    for n_seeds in (10, 60):
        tables = make_run(n_seeds=n_seeds)
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


def test_the_bytes_of_the_copies_are_limited_by_whole_places(
    tmp_path: Path, make_run: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run(n_seeds=4).write(tmp_path / "run")
    sizes = [
        len(image.thumbnail.uri) for image in gallery_images.shown_images(read_run_view(folder))
    ]
    # Four cells: three places and one byte too little for the fourth.
    monkeypatch.setattr(gallery_images, "BYTES_EMBEDDED", sum(sizes[:16]) - 1)
    assert len(gallery_images.shown_images(read_run_view(folder))) == 12


def test_it_says_which_part_is_shown(
    tmp_path: Path, make_run: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = make_run(n_seeds=6)
    tables.scores.loc[[0, 5, 30], "unscored_reason"] = "timeout"
    folder = tables.write(tmp_path / "run")
    assert gallery_of(folder).shown == "All 48 images of the run."
    monkeypatch.setattr(gallery_images, "IMAGES_SHOWN", 16)
    found = gallery_of(folder)
    assert found.shown == (
        "16 of the run's 48 images, to keep this file small: the first of 2 prompts and the first "
        "4 of 6 seeds, the same for each of 4 cells. All images are listed in scores.parquet. 1 of "
        "the 3 unscored images are shown."
    )
    assert found.data["total"] == 48


def test_more_cells_than_images_can_be_shown(
    tmp_path: Path, make_run: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery_images, "IMAGES_SHOWN", 3)
    found = gallery_of(make_run(n_seeds=2).write(tmp_path / "run"))
    assert [image["cell"] for image in found.data["images"]] == [0, 1, 2]
    assert (
        "the first of 2 prompts and the first of 2 seeds, the same for each of the first 3 cells"
        in (found.shown)
    )


def test_hostile_text_goes_into_the_data_and_out_again_char_for_char(
    tmp_path: Path, make_run: Maker
) -> None:
    raws = [*HOSTILE, "lone \ud800 surrogate"]
    tables = make_run(methods=("LoRA", raws[0]), prompts=tuple(raws[:5]), n_seeds=2)
    tables.scores["file"] = [f"images/{n}.png" for n in range(20)]
    tables.scores["cell"] = ["a"] * 10 + ["b"] * 10
    tables.table["cell"] = ["a", "b"]
    folder = tables.write(tmp_path / "run")
    rows = [row for _, row in tables.scores.iterrows()]
    replies = [raws[n % len(raws)] for n in range(20)]
    write_judgements(
        folder, [(r["cell"], judgement(r, raw=raw)) for r, raw in zip(rows, replies, strict=True)]
    )
    write_report(folder)
    block = data_block(folder)
    assert not set("<>&\u2028\u2029\x00") & set(block)
    found = {image["file"]: image["replies"][0]["raw"] for image in json.loads(block)["images"]}
    assert found == dict(zip(tables.scores["file"], replies, strict=True))
    page = gallery_page(folder)
    # Two elements: the data and the script.
    assert [script.get("type") for script in page.all("script")] == ["application/json", None]
    assert [a for _, a in page.tags if any(key.startswith("on") for key in a)] == []
    assert page.open == []
    assert raws[3] in page.text


def test_only_the_gallerys_own_script_may_run(tmp_path: Path, make_run: Maker) -> None:
    folder = reported(make_run(n_seeds=1), tmp_path / "run")
    rest, gallery = in_two(folder)
    script = gallery[gallery.rindex("<script>") + 8 : gallery.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = rest[rest.index("default-src") : rest.index('">', rest.index("default-src"))]
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    for written in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert written not in script


def test_pictures_stand_in_the_file_once(tmp_path: Path, make_run: Maker) -> None:
    folder = reported(make_run(prompts=("one",), n_seeds=20), tmp_path / "run")
    images = json.loads(data_block(folder))["images"]
    listed = [image["src"] for image in gallery_page(folder).all("img")]
    assert len(images) == 80
    assert [image["picture"] for image in images[:48]] == [""] * 48
    assert len(listed) == 48
    everything = listed + [image["picture"] for image in images[48:]]
    # The images of the synthetic run differ, each from each.
    assert len(set(everything)) == 80
    source = folder.report_html.read_text(encoding="utf-8")
    gallery = in_two(folder)[1]
    assert all(gallery.count(uri) == 1 for uri in everything)
    assert "plain list of the first 48" in source


def test_missing_broken_and_outside_images_say_why(tmp_path: Path, make_run: Maker) -> None:
    tables = make_run(methods=("LoRA", "AutoLoRA"), prompts=("one",), n_seeds=3)
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    folder = tables.write(tmp_path / "run")
    files = list(tables.scores["file"])
    (folder.path / files[0]).unlink()
    whole = (folder.path / files[1]).read_bytes()
    (folder.path / files[1]).write_bytes(whole[: len(whole) // 2])
    tables.scores.loc[2, "file"] = "../secret.png"
    tables.scores.loc[3, "file"] = None
    tables.scores.to_parquet(folder.scores)
    write_report(folder)
    images = {image["file"]: image for image in gallery_of(folder).data["images"]}
    reasons = {
        files[0]: "missing image",
        files[1]: "corrupt image",
        "../secret.png": "'../secret.png' leads out of its folder",
    }
    for file, reason in reasons.items():
        assert images[file]["absent"] == reason
        assert reason in gallery_page(folder).text
    assert len(gallery_page(folder).all("img")) == 2


def test_everything_to_find_an_image_is_told(tmp_path: Path, make_run: Maker) -> None:
    tables = make_run(methods=("LoRA", "AutoLoRA"), prompts=("one",), n_seeds=2)
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


def test_a_swept_parameter_is_a_filter_and_a_fact(tmp_path: Path, make_run: Maker) -> None:
    tables = make_run(methods=("LoRA", "AutoLoRA"), prompts=("one",), n_seeds=2)
    for table in (tables.table, tables.scores):
        table["method"] = "LoRA"
    for cell, scale in zip(tables.manifest["cells"], (0.4, 1.0), strict=True):
        cell["point"] = {"lora_scale": scale}
    found = gallery_of(tables.write(tmp_path / "run"))
    filters = {f.name: list(f.options) for f in found.filters}
    assert filters["cell.lora_scale"] == ["0.4", "1"]
    # One model, one method: nothing to choose.
    assert list(filters) == ["cell.lora_scale", "seed", "verdict"]
    assert found.data["facets"] == ["cell.model", "cell.method", "cell.lora_scale"]
    assert found.data["cells"] == [["SDXL", "LoRA", "0.4"], ["SDXL", "LoRA", "1"]]
    assert dict(found.data["images"][1]["facts"])["LoRA scale"] == "1"


def test_without_a_judge_there_is_nothing_about_scores(tmp_path: Path, make_run: Maker) -> None:
    folder = reported(make_run(judged=False), tmp_path / "run")
    found = gallery_of(folder)
    assert [f.name for f in found.filters] == ["prompt", "cell.method", "seed"]
    assert list(found.orders) == ["prompt", "seed", "cell"]
    assert all(image["replies"] == [] for image in found.data["images"])
    names = [field.get("name") for field in gallery_page(folder).all("select")]
    assert names == ["prompt", "cell.method", "seed", "sort"]
    assert gallery_page(folder).all("input") == []


def test_a_link_names_an_image_by_its_file() -> None:
    file = "images/SDXL--LoRA+CFG/50% of a \u2603 #1/0.png"
    link = image_link(file)
    assert link.isascii()
    assert not set(link.removeprefix("#image=")) & set(" #&=?\"<>'")
    assert unquote(link.removeprefix("#image=")) == file


def test_images_of_the_grids_link_to_the_gallery_where_it_has_them(
    tmp_path: Path, make_run: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery_images, "IMAGES_SHOWN", 4)
    tables = make_run(prompts=("one",), n_seeds=2)
    folder = reported(tables, tmp_path / "run")
    links = [link["href"] for link in page(folder).all("a")]
    first = tables.scores[tables.scores["seed"] == 0]
    of_images = {link for link in links if not link.startswith("#gallery&")}
    assert of_images == {image_link(file) for file in first["file"]}
