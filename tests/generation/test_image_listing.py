"""Image sets in every form are read; what cannot be read is refused with its file and row."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from image_files import encoded, picture, save
from PIL import Image
from pyarrow import parquet

from autolora_eval._errors import UsageError
from autolora_eval._files import prompt_folder
from autolora_eval.generation.image_sets import match, read_image_set
from autolora_eval.generation.image_validation import decode_rgb, validate_image
from autolora_eval.runs.manifest import ImageJob

pytestmark = pytest.mark.model

PROMPTS = ("a cat", "a dog, pixel art")
JOBS = tuple(ImageJob(index, p, seed) for index, p in enumerate(PROMPTS) for seed in (3, 4))
ROW: dict[str, Any] = {"file_name": "0.png", "prompt": "a cat", "seed": 0}


def rows_of_files(folder: Path) -> list[dict[str, object]]:
    """Write one image per job; return them as rows of a listing."""
    rows = []
    for number, job in enumerate(JOBS):
        save(folder / f"img/{number}.png", number)
        rows.append({"file_name": f"img/{number}.png", "prompt": job.prompt, "seed": job.seed})
    return rows


def imagefolder(folder: Path) -> Path:
    return write_jsonl(folder / "metadata.jsonl", *rows_of_files(folder)).parent


def csv_listing(file: Path, separator: str = ",", **names: str) -> Path:
    frame = pd.DataFrame(rows_of_files(file.parent)).rename(columns=names)
    frame.to_csv(file, sep=separator, index=False)
    return file


def excel_listing(file: Path) -> Path:
    text = csv_listing(file, ";", file_name="File_Name ", seed="Seed").read_text("utf-8")
    file.write_text(f"sep=;\n{text};;\n;;\n", "utf-8-sig")
    return file


def parquet_listing(folder: Path) -> Path:
    # A null makes pandas write whole numbers as floats.
    rows = [*rows_of_files(folder), {"file_name": "img/0.png", "prompt": "other", "seed": None}]
    pd.DataFrame(rows).rename(columns={"prompt": "Caption"}).to_parquet(folder / "mine.parquet")
    return folder / "mine.parquet"


def tree(folder: Path, name: str = "{0.prompt}/{0.seed}.png") -> Path:
    """Write one image per job, its name a template of the job."""
    for number, job in enumerate(JOBS):
        save(folder / name.format(job), number)
    return folder


def tree_of_this_package(folder: Path) -> Path:
    for number, job in enumerate(JOBS):
        save(folder / prompt_folder(job.prompt) / f"{job.seed}.png", number)
    return folder


def dataset(folder: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        image=datasets.Image(), text=datasets.Value("string"), Seed=datasets.Value("int64")
    )
    rows = {
        "image": [picture(number) for number in range(len(JOBS))],
        "text": [job.prompt for job in JOBS],
        "Seed": [job.seed for job in JOBS],
    }
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder / "dataset")
    return folder / "dataset"


FORMS: dict[str, Callable[[Path], Path]] = {
    "imagefolder": imagefolder,
    "split": lambda folder: imagefolder(folder / "train").parent,
    "CSV": lambda folder: csv_listing(folder / "mine.csv", file_name="path"),
    "CSV with semicolons": lambda folder: csv_listing(folder / "metadata.csv", ";").parent,
    "CSV of Excel": lambda folder: excel_listing(folder / "mine.csv"),
    "CSV with tabs": lambda folder: csv_listing(folder / "mine.tsv", "\t"),
    "JSON lines": lambda folder: write_jsonl(folder / "mine.jsonl", *rows_of_files(folder)),
    "JSON lines with a byte order mark": lambda folder: write(
        folder / "mine.jsonl", "\ufeff" + FORMS["JSON lines"](folder).read_text("utf-8")
    ),
    "Parquet": parquet_listing,
    "tree": tree,
    "tree in a split": lambda folder: tree(folder / "train").parent,
    "tree of this package": tree_of_this_package,
    "numbered tree": lambda folder: tree(folder, "{0.prompt_index:03}/seed_{0.seed:05}.png"),
    "dataset": dataset,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images(form, tmp_path):
    matching = match(read_image_set(FORMS[form](tmp_path)), JOBS)
    assert matching.missing == []
    assert not matching.seeds_by_order
    for number, job in enumerate(JOBS):
        image = decode_rgb(matching.found[job].read())
        assert np.array_equal(np.asarray(image), np.asarray(picture(number)))


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_text(text, encoding=encoding)
    return path


def write_jsonl(path: Path, *rows: object) -> Path:
    return write(path, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows))


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as raised:
        read_image_set(path)
    return str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,seed\na.png,3\n", "no column named 'prompt', 'text', 'caption'; it has file, seed."),
        ("file,prompt,seed\na.png,a cat,three\n", "row 1': seed 'three' is not a whole number"),
        ("file,prompt,seed\na.png,a cat,-1\n", "seed '-1' is not a whole number of at least 0"),
        ("file,prompt,prompt\na.png,a,b\n", "two columns are named 'prompt'"),
        ("file,prompt\na.png,a\nb.png,a dog, pixel art\n", "row 2': has 3 fields, but the header"),
        ("file,prompt,seed\na.png,a\n", "row 1': has 2 fields, but the header has 3"),
        ("file;prompt\na.png;a; b\n", "header has 2. Put a prompt with a semicolon in double"),
        ("", "it has no columns"),
        ("file,prompt,seed\n", "mine.csv': has no rows. Add a row for each image."),
    ],
)
def test_a_csv_file_that_cannot_be_used_is_refused_with_its_row(tmp_path, text, message):
    assert message in refusal(write(tmp_path / "mine.csv", text))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("null", "null is not an object"),
        ("[1]", "[1] is not an object"),
        ('{"file_name"', "not valid JSON: Expecting ':' delimiter"),
        ('{"file_name": "\\ud800.png"}', "'\\ud800.png' is not valid UTF-8"),
        ('{"file_name": "1.png", "prompt": "\\ud800"}', "'\\ud800' is not valid UTF-8"),
        ('{"file_name": "1.png", "prompt": ["a", "b"]}', "['a', 'b'] is not a single value"),
        ('{"file_name": null, "prompt": "a"}', "no file name"),
        ('{"file_name": "", "prompt": "a"}', "no file name"),
        ('{"file_name": {"path": "0.png"}}', "the column holds images instead of paths"),
    ],
)
def test_a_json_line_that_cannot_be_used_is_refused_with_its_row(tmp_path, line, message):
    text = f"{json.dumps(ROW)}\n\n{line}"
    assert f"row 2': {message}" in refusal(write(tmp_path / "mine.jsonl", text))


def test_a_parquet_bomb_is_refused_before_it_is_in_memory(tmp_path):
    """Millions of equal rows are a few kilobytes of run lengths."""
    rows = pa.array(["a.png"]).dictionary_encode().take(pa.array(np.zeros(2_000_001, np.int32)))
    parquet.write_table(pa.table({"file": rows}), tmp_path / "mine.parquet")
    assert (tmp_path / "mine.parquet").stat().st_size < 200_000
    assert "has more than 2,000,000 rows" in refusal(tmp_path / "mine.parquet")


def test_an_index_that_pandas_noted_is_not_made(tmp_path):
    frame = pd.DataFrame([ROW])
    frame.index = pd.RangeIndex(10**9, 10**9 + 1)
    table = pa.Table.from_pandas(frame)
    note = table.schema.metadata[b"pandas"].replace(b"1000000001", b"9000000000")
    parquet.write_table(table.replace_schema_metadata({"pandas": note}), tmp_path / "mine.parquet")
    assert len(read_image_set(tmp_path / "mine.parquet").records) == 1


@pytest.mark.parametrize("column", ["prompt", "seed", "file_name"])
def test_a_list_in_a_parquet_listing_is_refused(tmp_path, column):
    pd.DataFrame([ROW | {column: [1, 2]}]).to_parquet(tmp_path / "mine.parquet")
    assert "row 1': [1, 2] is not a single value" in refusal(tmp_path / "mine.parquet")


def test_a_missing_value_of_pandas_is_not_a_seed(tmp_path):
    frame = pd.DataFrame([ROW, ROW | {"seed": None}]).astype({"seed": "Int64", "prompt": "string"})
    frame.to_parquet(tmp_path / "mine.parquet")
    records = read_image_set(tmp_path / "mine.parquet").records
    assert [(one.prompt, one.seed) for one in records] == [("a cat", 0), ("a cat", None)]


def test_large_seeds_beside_an_empty_one_stay_exact(tmp_path):
    rows = [ROW | {"seed": 2**63 - 1}, {"file_name": "1", "prompt": "a"}, ROW | {"seed": 3.0}]
    records = read_image_set(write_jsonl(tmp_path / "mine.jsonl", *rows)).records
    assert [one.seed for one in records] == [2**63 - 1, None, 3]


@pytest.mark.parametrize("prompt", ["a\u2028b", "a\x85b", ' "quoted", a\\b\n\ttwo lines ', "$(x)"])
def test_any_text_can_be_a_prompt_of_a_listing(tmp_path, prompt):
    row = ROW | {"prompt": prompt}
    records = read_image_set(write_jsonl(tmp_path / "mine.jsonl", row)).records
    pd.DataFrame([row]).to_csv(tmp_path / "mine.csv", index=False)
    records += read_image_set(tmp_path / "mine.csv").records
    assert [one.prompt for one in records] == [prompt, prompt]


@pytest.mark.parametrize(("encoding", "byte"), [("utf-16", "0xff"), ("cp1252", "0xe9")])
def test_a_listing_in_another_encoding_is_refused_with_what_to_do(
    tmp_path: Path, encoding: str, byte: str
) -> None:
    listing = write(tmp_path / "mine.csv", "file_name,prompt,seed\n0.png,a café,0\n", encoding)
    message = refusal(listing)
    assert f"mine.csv': not UTF-8 (byte {byte}). Save it in UTF-8" in message


def test_blanks_may_follow_the_commas_of_a_listing(tmp_path: Path) -> None:
    write(tmp_path / "mine.csv", 'file_name, prompt, seed\n0.png, "a cat, asleep", 7\n')
    (one,) = read_image_set(tmp_path / "mine.csv").records
    assert (one.name, one.prompt, one.seed) == ("0.png", "a cat, asleep", 7)


@pytest.mark.parametrize("name", ["../outside.png", "/etc/passwd", "a/../../x.png"])
def test_a_listing_cannot_name_a_file_outside_its_folder(tmp_path, name):
    (tmp_path / "set").mkdir()
    listing = write_jsonl(tmp_path / "set" / "mine.jsonl", ROW | {"file_name": name})
    assert "lies outside" in refusal(listing)


def test_a_backslash_separates_folders_unless_the_file_exists(tmp_path):
    save(tmp_path / "a" / "0.png", 0)
    save(tmp_path / "b\\1.png", 0)
    rows = [ROW | {"file_name": name} for name in ("a\\0.png", "b\\1.png")]
    records = read_image_set(write_jsonl(tmp_path / "mine.jsonl", *rows)).records
    assert [one.source for one in records] == [tmp_path / "a" / "0.png", tmp_path / "b\\1.png"]


def test_images_that_the_metadata_does_not_list_are_extra(tmp_path):
    for name in ("0.png", "more/1.png"):
        save(tmp_path / name, 0)
    write_jsonl(tmp_path / "metadata.jsonl", ROW)
    matching = match(read_image_set(tmp_path), [ImageJob(0, "a cat", 0)])
    (extra,) = matching.extra
    assert (extra.record.name, extra.reason) == ("more/1.png", "not in metadata.jsonl")
    assert not matching.seeds_by_order


def test_two_listings_in_one_folder_are_refused(tmp_path):
    save(tmp_path / "0.png", 0)
    pd.DataFrame([ROW]).to_csv(tmp_path / "metadata.csv", index=False)
    write_jsonl(tmp_path / "metadata.jsonl", ROW)
    assert "metadata.csv and metadata.jsonl may both list the images" in refusal(tmp_path)


def test_of_several_splits_one_must_be_chosen(tmp_path):
    for name in ("train", "test"):
        imagefolder(tmp_path / "listed" / name)
        tree(tmp_path / "tree" / name)
    listed = refusal(tmp_path / "listed")
    assert "train/metadata.jsonl and test/metadata.jsonl may both list the images" in listed
    folders = ", ".join(f"'{tmp_path / 'tree' / name}'" for name in ("test", "train"))
    assert f"has several splits; choose one of {folders}." in refusal(tmp_path / "tree")


def test_a_folder_without_images_is_refused_with_the_expected_forms(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        assert "expected a folder with metadata.jsonl" in refusal(path)


@pytest.mark.parametrize("name", ["0.gif", "0.PNG", "0.ppm", "0.avif"])
def test_every_image_format_of_pillow_is_listed_and_nothing_else(tmp_path, name):
    (tmp_path / "a cat").mkdir()
    (tmp_path / "a cat" / name).write_bytes(encoded(Image.new("RGB", (2, 2))))
    for other in ("notes.txt", "paper.pdf"):
        write(tmp_path / "a cat" / other, "not an image")
    for hidden in ("._0.png", ".ipynb_checkpoints/0-checkpoint.png"):
        save(tmp_path / "a cat" / hidden, 1)
    assert [one.name for one in read_image_set(tmp_path).records] == [f"a cat/{name}"]


def test_files_are_sorted_by_the_numbers_in_their_names(tmp_path):
    for number in (10, 2, 0):
        save(tmp_path / f"sdxl_{number}_1024x1024.png", 0)
    names = [one.name for one in read_image_set(tmp_path).records]
    assert names == [f"sdxl_{number}_1024x1024.png" for number in (0, 2, 10)]


def test_an_unreadable_folder_is_refused(tmp_path, monkeypatch):
    save(tmp_path / "a cat" / "0.png", 0)
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def closed(path: str) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert "closed' cannot be read: Permission denied" in refusal(tmp_path)


@pytest.mark.parametrize("linked", ["file", "folder"])
def test_a_link_that_leads_out_of_a_tree_is_refused(tmp_path, linked):
    save(tmp_path / "private" / "0.png", 0)
    save(tmp_path / "set" / "a" / "1.png", 0)
    if linked == "file":
        (tmp_path / "set" / "a" / "0.png").symlink_to(tmp_path / "private" / "0.png")
    else:
        (tmp_path / "set" / "b").symlink_to(tmp_path / "private")
    assert "lies outside" in refusal(tmp_path / "set")


def test_a_linked_folder_is_not_read_twice_and_a_dangling_link_is_an_image(tmp_path):
    save(tmp_path / "a" / "0.png", 0)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "1.png").symlink_to(tmp_path / "a" / "gone.png")
    assert [one.name for one in read_image_set(tmp_path).records] == ["a/0.png", "a/1.png"]


def saved_dataset(folder: Path, *columns: str) -> Path:
    datasets = pytest.importorskip("datasets")
    rows = {name: [Image.new("RGB", (2, 2), (n, 0, 0))] for n, name in enumerate(columns)}
    features = {name: datasets.Image() for name in columns} | {"text": datasets.Value("string")}
    data = datasets.Dataset.from_dict(rows | {"text": ["a cat"]}, datasets.Features(features))
    data.save_to_disk(folder)
    return folder


def test_of_several_image_columns_the_one_named_image_is_read(tmp_path):
    (one,) = read_image_set(saved_dataset(tmp_path / "a", "mask", "image")).records
    assert validate_image(one.read()).colour == (1, 0, 0)
    message = refusal(saved_dataset(tmp_path / "b", "mask", "depth"))
    assert "several columns of images: mask, depth. Name the column to score 'image'" in message


def test_a_damaged_dataset_is_refused(tmp_path):
    write(saved_dataset(tmp_path / "a", "image") / "state.json", "{}")
    assert "cannot be read" in refusal(tmp_path / "a")


def test_the_images_of_a_dataset_are_read_on_demand(tmp_path):
    """A set of 25,000 images may be larger than memory."""
    records = read_image_set(dataset(tmp_path)).records
    assert all(callable(one.source) for one in records)
    assert len({one.name for one in records}) == len(JOBS)
