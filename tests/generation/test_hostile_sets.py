"""Sets as people have them: odd names, odd pictures, links, holes; nothing wrong goes unsaid."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from autolora_eval._errors import UsageError
from autolora_eval.config.plan import ImageJob
from autolora_eval.generation.image_sets.matching import account, match
from autolora_eval.generation.image_sets.readers import read_image_set
from autolora_eval.generation.image_sets.records import Entry, ImageSet, look, opened


def jobs(*prompts: str, seeds: int = 1) -> list[ImageJob]:
    return [ImageJob(n, prompt, seed) for n, prompt in enumerate(prompts) for seed in range(seeds)]


def tree(*folders: str) -> ImageSet:
    entries = [Entry(f"{folder}/0.png", folder, 0, data=folder.encode()) for folder in folders]
    return ImageSet(Path("set"), "tree of images", entries, by_folder=True)


def found(images: ImageSet, asked: list[ImageJob]) -> dict[str, str]:
    return {job.prompt: entry.name for job, entry in match(images, asked).found.items()}


def noise(*shape: int, kind: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(kind).max, shape, dtype=kind)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_a_folder_that_may_be_two_prompts_is_neithers() -> None:
    """'a cat!' and 'a cat?' are one folder name, and 'A cat' is another prompt than 'a cat'."""
    asked = jobs("a cat!", "a cat?", "a dog")
    matching = match(tree("a-cat", "a-dog"), asked)
    assert [job.prompt for job in matching.missing] == ["a cat!", "a cat?"]
    assert [extra.why for extra in matching.extra] == [
        "its folder may be any of 2 prompts: 'a cat!', 'a cat?'"
    ]
    assert found(tree("A cat", "a cat"), jobs("A cat", "a cat")) == {
        "A cat": "A cat/0.png",
        "a cat": "a cat/0.png",
    }


def test_a_prompts_text_comes_before_another_prompts_place() -> None:
    assert found(tree("0"), jobs("a cat", "0")) == {"0": "0/0.png"}


def test_composed_and_decomposed_letters_are_the_same() -> None:
    """File systems of one kind write é as one letter, of another as two."""
    assert found(tree("un caf\u0065\u0301"), jobs("un caf\u00e9")) == {
        "un caf\u00e9": "un caf\u0065\u0301/0.png"
    }


def test_prompts_that_differ_in_white_space_are_two() -> None:
    entries = [Entry("0", "a  cat", 0, data=b""), Entry("1", "a cat", 0, data=b"")]
    matching = match(ImageSet(Path("set"), "listing", entries), jobs("a cat", "a  cat"))
    assert {job.prompt: e.name for job, e in matching.found.items()} == {
        "a cat": "1",
        "a  cat": "0",
    }


def test_one_file_that_several_rows_name_is_told_of_each() -> None:
    asked = jobs("a", "b", "c")
    entries = [
        Entry("one.png", job.prompt, 0, data=encoded(Image.new("L", (2, 2)))) for job in asked
    ]
    matching = match(ImageSet(Path("set"), "listing", entries), asked)
    looked = {job: look(entry.read()) for job, entry in matching.found.items()}
    rows = [row for row in account(matching, looked, (2, 2)) if row.finding == "duplicate"]
    assert [(row.prompt, row.detail) for row in rows] == [
        ("b", "the same as one.png ('a', seed 0)"),
        ("c", "the same as one.png ('a', seed 0)"),
    ]


def test_sixteen_bits_are_scaled_and_not_cut_off() -> None:
    deep = noise(8, 8, kind=np.uint16)
    seen, pixels = look(encoded(Image.fromarray(deep))), opened(encoded(Image.fromarray(deep)))
    assert seen.converted == "16 bits a channel, scaled to 8"
    assert np.array_equal(np.asarray(pixels)[..., 0], np.round(deep / 257).astype(np.uint8))


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_pixels_without_a_range_are_not_guessed(kind: type) -> None:
    data = encoded(Image.fromarray(noise(8, 8).astype(kind)), "TIFF")
    assert look(data).problem is not None
    assert "unknown_range" in str(look(data).problem)


def test_a_picture_that_lies_on_its_side_is_stood_up() -> None:
    """As viewers and the `datasets` library show it."""
    image = Image.fromarray(noise(4, 8, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(image, "PNG", exif=exif)
    assert look(data).size == (4, 8)
    assert look(data).converted == "turned as its EXIF says"
    assert np.array_equal(np.asarray(opened(data)), np.rot90(np.asarray(image), -1))
    assert not opened(data).getexif().get(0x0112)


def test_transparency_and_further_frames_are_told() -> None:
    clear = Image.fromarray(noise(8, 8, 4))
    assert look(encoded(clear)).converted == "transparency dropped"
    opaque = clear.copy()
    opaque.putalpha(255)
    assert look(encoded(opaque)).converted == ""
    frames = [Image.fromarray(noise(8, 8, 3)), Image.new("RGB", (8, 8))]
    moving = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
    assert look(moving).converted == "the first of 2 frames"
    palette = Image.fromarray(noise(8, 8, 3)).quantize(16)
    assert look(encoded(palette)).converted == ""


def test_what_was_converted_stands_in_the_account() -> None:
    asked = jobs("a")
    entry = Entry("0.png", "a", 0, data=encoded(Image.fromarray(noise(8, 8, 4))))
    matching = match(ImageSet(Path("set"), "listing", [entry]), asked)
    rows = account(matching, {asked[0]: look(entry.read())}, (8, 8))
    assert [(row.finding, row.detail) for row in rows] == [("converted", "transparency dropped")]


def write_listing(folder: Path, rows: list[dict[str, object]]) -> Path:
    file = folder / "mine.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


@pytest.mark.parametrize("prompt", ["a\u2028b", "a\x85b", ' "quoted", a\\b\n\ttwo lines ', "$(x)"])
def test_any_text_is_a_prompt_of_a_listing(tmp_path: Path, prompt: str) -> None:
    row = {"path": "0.png", "prompt": prompt, "seed": 0}
    assert read_image_set(write_listing(tmp_path, [row])).entries[0].prompt == prompt
    pd.DataFrame([row]).to_csv(tmp_path / "mine.csv", index=False)
    assert read_image_set(tmp_path / "mine.csv").entries[0].prompt == prompt


def test_large_seeds_stay_whole_beside_an_empty_one(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"path": "0.png", "prompt": "a", "seed": 2**63 - 1},
        {"path": "1.png", "prompt": "a"},
        {"path": "2.png", "prompt": None, "seed": 3.0},
    ]
    entries = read_image_set(write_listing(tmp_path, rows)).entries
    assert [(entry.prompt, entry.seed) for entry in entries] == [
        ("a", 2**63 - 1),
        ("a", None),
        (None, 3),
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "row 1': no file is named"),
        ("", "row 1': no file is named"),
        ("a\0b.png", "row 1': no file can be called"),
        ({"bytes": "iVBOR", "path": "0.png"}, "holds images, not their paths"),
    ],
)
def test_a_listing_that_names_no_file_says_where(
    tmp_path: Path, name: object, message: str
) -> None:
    listing = write_listing(tmp_path, [{"image": name, "prompt": "a", "seed": 0}])
    with pytest.raises(UsageError) as raised:
        read_image_set(listing)
    assert message in str(raised.value)


@pytest.mark.parametrize("linked", ["file", "folder"])
def test_a_link_does_not_lead_out_of_a_tree(tmp_path: Path, linked: str) -> None:
    outside = tmp_path / "private" / "0.png"
    outside.parent.mkdir()
    Image.new("RGB", (2, 2)).save(outside)
    place = tmp_path / "set"
    (place / "a").mkdir(parents=True)
    Image.new("RGB", (2, 2)).save(place / "a" / "1.png")
    if linked == "file":
        (place / "a" / "0.png").symlink_to(outside)
    else:
        (place / "b").symlink_to(outside.parent)
    with pytest.raises(UsageError, match="lies outside"):
        read_image_set(place)


def test_a_linked_folder_within_a_tree_is_read_by_its_own_name_only(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "a" / "0.png")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert [entry.name for entry in read_image_set(tmp_path).entries] == ["a/0.png"]


def test_the_images_of_a_dataset_stay_on_disk(tmp_path: Path) -> None:
    """A set of 25,000 is larger than memory: an entry's bytes are read when they are asked for."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        image=datasets.Image(), text=datasets.Value("string"), seed=datasets.Value("int64")
    )
    pictures = [Image.fromarray(noise(8, 8, 3)), Image.new("RGB", (8, 8))]
    for n, picture in enumerate(pictures):
        (tmp_path / str(n)).mkdir()
        picture.save(tmp_path / str(n) / "0.png")
    rows = {
        "image": [str(tmp_path / str(n) / "0.png") for n in range(2)],
        "text": ["a", "b"],
        "seed": [0, 0],
    }
    embedded = datasets.Dataset.from_dict(rows, features=features).map(lambda row: row)
    embedded.save_to_disk(tmp_path / "saved")
    entries = read_image_set(tmp_path / "saved").entries
    assert all(entry.data is None for entry in entries)
    assert len({entry.name for entry in entries}) == 2
    for entry, picture in zip(entries, pictures, strict=True):
        assert np.array_equal(np.asarray(opened(entry.read())), np.asarray(picture))
