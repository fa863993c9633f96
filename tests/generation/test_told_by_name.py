"""What a reader could pass over, or take for something else, is told by name or refused."""

from __future__ import annotations

import io
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from autolora_eval._errors import UsageError
from autolora_eval.config.plan import ImageJob
from autolora_eval.generation.image_sets.matching import match
from autolora_eval.generation.image_sets.readers import read_image_set
from autolora_eval.generation.image_sets.records import Entry, ImageSet, look
from autolora_eval.runs.images import ImageError, open_image

ROW = {"file_name": "0.png", "prompt": "a cat", "seed": 0}


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


def save(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(4, 4, 3)).save(path)


def refusal(place: Path) -> str:
    with pytest.raises(UsageError) as raised:
        read_image_set(place)
    return str(raised.value)


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_text(text, encoding=encoding)
    return path


def test_images_beside_the_metadata_that_it_does_not_list_are_extra(tmp_path: Path) -> None:
    for name in ("0.png", "more/1.png"):
        save(tmp_path / name)
    pd.DataFrame([ROW]).to_csv(tmp_path / "metadata.csv", index=False)
    matching = match(read_image_set(tmp_path), jobs("a cat"))
    assert [(extra.entry.name, extra.why) for extra in matching.extra] == [
        ("more/1.png", "not in metadata.csv")
    ]
    assert not matching.seeds_by_order


def test_two_listings_of_one_folder_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "0.png")
    pd.DataFrame([ROW]).to_csv(tmp_path / "metadata.csv", index=False)
    write(tmp_path / "metadata.jsonl", json.dumps(ROW))
    assert "both metadata.csv and metadata.jsonl may list the images" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["0.gif", "0.PNG", "0.ppm", "0.avif"])
def test_every_type_of_image_that_can_be_opened_is_listed(tmp_path: Path, name: str) -> None:
    (tmp_path / "a cat").mkdir()
    (tmp_path / "a cat" / name).write_bytes(encoded(Image.new("RGB", (2, 2))))
    write(tmp_path / "a cat" / "notes.txt", "no image")
    write(tmp_path / "a cat" / "paper.pdf", "no image")
    assert [entry.name for entry in read_image_set(tmp_path).entries] == [f"a cat/{name}"]


def test_a_folder_that_cannot_be_read_is_no_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "a cat" / "0.png")
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def closed(path: str) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert "closed' cannot be read: Permission denied" in refusal(tmp_path)


def test_a_link_to_nowhere_is_an_image_that_is_missing(tmp_path: Path) -> None:
    save(tmp_path / "a cat" / "0.png")
    (tmp_path / "a cat" / "1.png").symlink_to(tmp_path / "a cat" / "gone.png")
    assert [entry.seed for entry in read_image_set(tmp_path).entries] == [0, 1]


def test_numbers_in_names_are_counted(tmp_path: Path) -> None:
    for number in (10, 2, 0):
        save(tmp_path / f"sdxl_{number}_1024x1024.png")
    names = [entry.name for entry in read_image_set(tmp_path).entries]
    assert names == [f"sdxl_{number}_1024x1024.png" for number in (0, 2, 10)]


def saved_dataset(folder: Path, *columns: str) -> Path:
    datasets = pytest.importorskip("datasets")
    rows = {name: [Image.new("RGB", (2, 2), (n, 0, 0))] for n, name in enumerate(columns)}
    features = {name: datasets.Image() for name in columns} | {"text": datasets.Value("string")}
    data = datasets.Dataset.from_dict(rows | {"text": ["a cat"]}, datasets.Features(features))
    data.save_to_disk(folder)
    return folder


def test_of_several_columns_of_images_the_one_called_so_is_taken(tmp_path: Path) -> None:
    entry = read_image_set(saved_dataset(tmp_path / "a", "mask", "image")).entries[0]
    assert look(entry.read()).colour == (1, 0, 0)
    message = refusal(saved_dataset(tmp_path / "b", "mask", "depth"))
    assert "several columns of images: mask, depth. Call the one to be scored 'image'" in message


def test_a_dataset_whose_state_is_lost_is_refused(tmp_path: Path) -> None:
    write(saved_dataset(tmp_path / "a", "image") / "state.json", "{}")
    assert "cannot be read" in refusal(tmp_path / "a")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["null"], "row 2': null is no object"),
        (["[1]"], "row 2': [1] is no object"),
        (['{"file_name"'], "row 2': no JSON: Expecting ':' delimiter"),
        (['{"file_name": "\\ud800.png"}'], "row 2': '\\ud800.png' is no UTF-8 text"),
        (['{"file_name": "1.png", "prompt": "\\ud800"}'], "row 2': '\\ud800' is no UTF-8 text"),
        (['{"file_name": "1.png", "prompt": ["a", "b"]}'], "row 2': ['a', 'b'] is not one value"),
    ],
)
def test_a_line_that_is_no_row_is_named(tmp_path: Path, lines: list[str], message: str) -> None:
    text = "\n\n".join([json.dumps(ROW), *lines])
    assert message in refusal(write(tmp_path / "mine.jsonl", text))


@pytest.mark.parametrize("column", ["prompt", "seed", "file_name"])
def test_a_list_in_a_parquet_listing_is_refused(tmp_path: Path, column: str) -> None:
    pd.DataFrame([ROW | {column: [1, 2]}]).to_parquet(tmp_path / "mine.parquet")
    assert "row 1': array([1, 2]) is not one value" in refusal(tmp_path / "mine.parquet")


def test_a_missing_number_of_pandas_is_no_seed(tmp_path: Path) -> None:
    frame = pd.DataFrame([ROW, ROW | {"seed": None}]).astype({"seed": "Int64", "prompt": "string"})
    frame.to_parquet(tmp_path / "mine.parquet")
    entries = read_image_set(tmp_path / "mine.parquet").entries
    assert [(entry.prompt, entry.seed) for entry in entries] == [("a cat", 0), ("a cat", None)]


def test_a_byte_order_mark_is_no_part_of_a_listing(tmp_path: Path) -> None:
    for file, text in {
        "mine.jsonl": json.dumps(ROW),
        "mine.csv": pd.DataFrame([ROW]).to_csv(index=False),
    }.items():
        images = read_image_set(write(tmp_path / file, text, "utf-8-sig"))
        assert [entry.name for entry in images.entries] == ["0.png"]


def test_a_row_of_another_length_is_refused(tmp_path: Path) -> None:
    text = "file_name,prompt,seed\n0.png,a cat,0\n1.png,a dog, pixel art,0\n"
    message = refusal(write(tmp_path / "mine.csv", text))
    assert "mine.csv, row 2': 4 fields, where the first line names 3 columns" in message
    assert "in double quotes" in message


def test_a_back_slash_parts_folders_where_no_such_file_is(tmp_path: Path) -> None:
    save(tmp_path / "a" / "0.png")
    save(tmp_path / "b\\1.png")
    rows = [ROW | {"file_name": name} for name in ("a\\0.png", "b\\1.png")]
    pd.DataFrame(rows).to_csv(tmp_path / "mine.csv", index=False)
    paths = [entry.path for entry in read_image_set(tmp_path / "mine.csv").entries]
    assert paths == [tmp_path / "a" / "0.png", tmp_path / "b\\1.png"]


def test_folders_that_are_counted_from_one_are_refused() -> None:
    asked = jobs("a cat", "a dog")
    with pytest.raises(UsageError, match=r"folders 1 to 2 for 2 prompts: counted from 1\?"):
        match(tree("1", "2"), asked)
    assert found(tree("1"), asked) == {"a dog": "1/0.png"}
    assert found(tree("0", "2"), asked) == {"a cat": "0/0.png"}


@pytest.mark.parametrize("name", ["A_DOG,_PIXEL_ART", "a dog pixel art", "a_dog,_pixel_art"])
def test_a_folder_of_the_letters_of_one_prompt_is_its_own(name: str) -> None:
    asked = jobs("a cat", "a dog, pixel art")
    assert list(found(tree(name), asked).values()) == [f"{name}/0.png"]
    with pytest.raises(UsageError, match="Call each folder by its prompt"):
        match(tree("a cow"), asked)


def test_an_image_beyond_the_seeds_is_told_so() -> None:
    entries = [Entry(name, "a cat", None, data=b"") for name in "abc"]
    matching = match(ImageSet(Path("set"), "listing", entries), jobs("a cat", seeds=2))
    assert [(extra.entry.name, extra.why) for extra in matching.extra] == [
        ("c", "the benchmark has only 2 seeds")
    ]


def test_what_pillow_changes_of_pixels_is_told() -> None:
    import zlib
    from struct import pack

    def chunk(kind: bytes, data: bytes) -> bytes:
        return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(range(12)) for _ in range(2))
    head = chunk(b"IHDR", pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0))
    deep = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert look(deep).converted == "16 bits a channel, cut to 8"
    inks = Image.fromarray(noise(4, 4, 4), "CMYK")
    assert look(encoded(inks, "JPEG")).converted == "CMYK turned into RGB"
    assert look(encoded(Image.fromarray(noise(4, 4, 3)), "JPEG")).converted == ""


@pytest.mark.parametrize("raised", [RuntimeError, NotImplementedError, AttributeError, KeyError])
def test_whatever_a_decoder_raises_is_a_corrupt_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: type[Exception]
) -> None:
    save(tmp_path / "0.png")

    def fail(*_: object, **__: object) -> None:
        raise raised("torn")

    monkeypatch.setattr(Image.Image, "convert", fail)
    assert look((tmp_path / "0.png").read_bytes()).problem == "corrupt_image"
    with pytest.raises(ImageError, match="corrupt_image"):
        open_image(tmp_path / "0.png")


def test_a_large_image_is_opened_without_pillows_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "0.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert look((tmp_path / "0.png").read_bytes()).problem is None
        assert np.asarray(open_image(tmp_path / "0.png")).shape == (4, 4, 3)
