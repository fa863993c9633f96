"""Somebody else's images: every form is read, every image accounted for."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from autolora_eval._errors import UsageError
from autolora_eval._files import prompt_folder
from autolora_eval.config.plan import ImageJob
from autolora_eval.generation.image_sets.matching import Matching, match
from autolora_eval.generation.image_sets.readers import read_image_set, seed_of
from autolora_eval.generation.image_sets.records import Entry, ImageSet, look, same_content

PROMPTS = ("a cat", "a dog, pixel art")
JOBS = tuple(ImageJob(index, p, seed) for index, p in enumerate(PROMPTS) for seed in (3, 4))


def picture(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def save(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(number).save(path)


def files(folder: Path) -> list[dict[str, object]]:
    """Write one image a job; return them as rows of a listing."""
    rows = []
    for number, job in enumerate(JOBS):
        name = f"img/{number}.png"
        save(folder / name, number)
        rows.append({"file_name": name, "prompt": job.prompt, "seed": job.seed})
    return rows


def imagefolder(folder: Path) -> Path:
    lines = [json.dumps(row) for row in files(folder)]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def csv_listing(folder: Path) -> Path:
    pd.DataFrame(files(folder)).rename(columns={"file_name": "path"}).to_csv(
        folder / "mine.csv", index=False
    )
    return folder / "mine.csv"


def jsonl_listing(folder: Path) -> Path:
    return imagefolder(folder).joinpath("metadata.jsonl").rename(folder / "mine.jsonl")


def parquet_listing(folder: Path) -> Path:
    # A null makes pandas write whole numbers as floats.
    rows = [*files(folder), {"file_name": "img/0.png", "prompt": "none of it", "seed": None}]
    pd.DataFrame(rows).rename(columns={"prompt": "caption"}).to_parquet(folder / "mine.parquet")
    return folder / "mine.parquet"


def tree(folder: Path) -> Path:
    for number, job in enumerate(JOBS):
        save(folder / job.prompt / f"{job.seed}.png", number)
    return folder


def own_tree(folder: Path) -> Path:
    for number, job in enumerate(JOBS):
        save(folder / prompt_folder(job.prompt) / f"{job.seed}.png", number)
    return folder


def numbered_tree(folder: Path) -> Path:
    for number, job in enumerate(JOBS):
        save(folder / f"{job.prompt_index:03}" / f"seed_{job.seed:05}.png", number)
    return folder


def dataset(folder: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        image=datasets.Image(), text=datasets.Value("string"), seed=datasets.Value("int64")
    )
    rows = {
        "image": [picture(number) for number in range(len(JOBS))],
        "text": [job.prompt for job in JOBS],
        "seed": [job.seed for job in JOBS],
    }
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder / "dataset")
    return folder / "dataset"


FORMS = [
    imagefolder,
    csv_listing,
    jsonl_listing,
    parquet_listing,
    tree,
    own_tree,
    numbered_tree,
    dataset,
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_gives_the_same_images(form: object, tmp_path: Path) -> None:
    assert callable(form)
    matching = match(read_image_set(form(tmp_path)), JOBS)
    assert matching.missing == []
    assert not matching.seeds_by_order
    for number, job in enumerate(JOBS):
        with Image.open(io.BytesIO(matching.found[job].read())) as image:
            assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(picture(number)))


def entries(*named: tuple[str | None, int | None]) -> list[Entry]:
    return [
        Entry(f"{number}.png", prompt, seed, data=b"")
        for number, (prompt, seed) in enumerate(named)
    ]


def listed(*named: tuple[str | None, int | None], by_folder: bool = False) -> ImageSet:
    return ImageSet(Path("set"), "listing", entries(*named), by_folder)


def account(matching: Matching) -> tuple[int, list[tuple[str, int]], list[tuple[str, str]]]:
    missing = [(job.prompt, job.seed) for job in matching.missing]
    return len(matching.found), missing, [(e.entry.name, e.why) for e in matching.extra]


def test_missing_and_extra_are_all_named() -> None:
    found = match(listed(("a cat", 3), ("a cat", 9), ("a cow", 3), (" a \n cat", 4)), JOBS)
    assert account(found) == (
        2,
        [("a dog, pixel art", 3), ("a dog, pixel art", 4)],
        [
            ("1.png", "no such seed in the benchmark"),
            ("2.png", "no such prompt in the benchmark"),
        ],
    )


def test_images_are_conserved() -> None:
    """Found and extra together are the set; found and missing together are the benchmark."""
    rng = np.random.default_rng(0)
    names = [*PROMPTS, "a cow", None]
    for _ in range(200):
        chosen = {(names[rng.integers(4)], int(rng.integers(2, 6))) for _ in range(6)}
        chosen.add(("a cat", 3))
        images = listed(*sorted(chosen, key=str))
        matching = match(images, JOBS)
        seen = [*matching.found.values(), *(extra.entry for extra in matching.extra)]
        assert sorted(e.name for e in seen) == sorted(e.name for e in images.entries)
        assert sorted([*matching.found, *matching.missing], key=JOBS.index) == list(JOBS)


def test_without_seeds_images_are_numbered_in_order_and_the_set_says_so() -> None:
    found = match(listed(("a cat", None), ("a dog, pixel art", None), ("a cat", None)), JOBS)
    assert found.seeds_by_order
    assert [(job.prompt, job.seed, e.name) for job, e in found.found.items()] == [
        ("a cat", 3, "0.png"),
        ("a dog, pixel art", 3, "1.png"),
        ("a cat", 4, "2.png"),
    ]


def test_one_prompt_needs_no_folder() -> None:
    jobs = [ImageJob(0, "Zib", seed) for seed in (0, 1)]
    assert account(match(listed((None, 0), (None, 1), by_folder=True), jobs)) == (2, [], [])


def test_a_folders_place_is_no_listings_prompt() -> None:
    """A listing states texts: "0" in it is a text and no place."""
    with pytest.raises(UsageError, match="none of the 1 images"):
        match(listed(("0", 3)), JOBS)
    assert len(match(listed(("0", 3), by_folder=True), JOBS).found) == 1


def test_two_claims_to_one_place_are_refused_by_name() -> None:
    with pytest.raises(UsageError) as raised:
        match(listed(("a cat", 3), ("a cat", 3)), JOBS)
    assert "'a cat', seed 3: 0.png, 1.png" in str(raised.value)


def test_a_set_of_other_images_is_refused_with_both_sides() -> None:
    with pytest.raises(UsageError) as raised:
        match(listed(("a cow", 1)), JOBS)
    assert "Its prompts: a cow …; seeds: 1 …" in str(raised.value)
    assert "The benchmark's: 'a cat' …, seeds 3 to 4." in str(raised.value)


@pytest.mark.parametrize(
    ("stem", "seed"),
    [("0", 0), ("00017", 17), ("seed_4", 4), ("img2_seed-31", 31), ("a1_b2", None), ("cat", None)],
)
def test_a_file_name_states_a_seed_or_none(stem: str, seed: int | None) -> None:
    assert seed_of(stem) == seed


@pytest.mark.parametrize("name", ["../outside.png", "/etc/passwd", "a/../../x.png"])
def test_a_listing_pulls_in_no_file_from_elsewhere(tmp_path: Path, name: str) -> None:
    listing = tmp_path / "set" / "mine.csv"
    listing.parent.mkdir()
    pd.DataFrame([{"path": name, "prompt": "a cat", "seed": 3}]).to_csv(listing, index=False)
    with pytest.raises(UsageError, match="lies outside"):
        read_image_set(listing)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        ("file,seed\na.png,3\n", "no column of 'prompt', 'text', 'caption'; it has file, seed."),
        ("file,prompt,seed\na.png,a cat,three\n", "seed 'three' is not a whole number"),
        ("file,prompt,seed\na.png,a cat,-1\n", "seed '-1' is not a whole number from 0"),
    ],
)
def test_a_listing_that_lacks_something_says_what(tmp_path: Path, write: str, message: str) -> None:
    (tmp_path / "mine.csv").write_text(write, encoding="utf-8")
    with pytest.raises(UsageError) as raised:
        read_image_set(tmp_path / "mine.csv")
    assert message in str(raised.value)


def test_no_set_at_all_says_what_is_expected(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UsageError, match=r"expected a folder with metadata\.jsonl"):
            read_image_set(place)


def test_what_is_wrong_with_an_image_is_seen() -> None:
    assert look(encoded(picture(1))).problem is None
    assert look(encoded(picture(1))).size == (8, 8)
    assert look(b"no image").problem == "corrupt_image"
    torn = encoded(picture(1))[:-40]
    assert look(torn).problem == "corrupt_image"
    assert look(encoded(Image.new("RGB", (4, 4), (0, 0, 0)))).colour == (0, 0, 0)
    assert look(encoded(Image.new("RGB", (4, 4), (7, 8, 9)))).colour == (7, 8, 9)
    assert look(encoded(picture(1))).colour is None


def test_the_same_picture_in_another_file_is_the_same() -> None:
    seen = [
        ("png", look(encoded(picture(1)))),
        ("bmp", look(encoded(picture(1), "BMP"))),
        ("other", look(encoded(picture(2)))),
        ("torn", look(b"")),
        ("torn too", look(b"")),
    ]
    assert same_content(seen) == [["png", "bmp"]]


def test_size_is_part_of_a_picture() -> None:
    flat = [look(encoded(Image.new("RGB", size, (1, 1, 1)))) for size in ((2, 8), (8, 2))]
    assert same_content(zip("ab", flat, strict=True)) == []
