"""Image grids: which images stand in which place, their small copies, and the files of grids."""

import io

import numpy as np
import pytest
from PIL import Image
from report.synthetic_run import IMAGE_SET, make_tables
from report.table1_run import write_table1_run

from autolora_eval.report.content import build_content
from autolora_eval.report.grid_layout import Grid, GridRow, GridSlot, choose_grids, some_of
from autolora_eval.report.grids import (
    IMAGES_READ,
    image_grids,
    load_thumbnails,
    make_thumbnail,
    write_grids,
)
from autolora_eval.report.run_view import Row, read_run_view
from autolora_eval.runs.folder import RunFolder


def chosen(folder: RunFolder) -> dict[str, Grid[GridSlot]]:
    return {grid.name: grid for grid in choose_grids(read_run_view(folder))}


def rows_of(line: GridRow[GridSlot]) -> list[Row]:
    """Return the images of a row, all of which must be there."""
    assert all(slot.row is not None for slot in line.images)
    return [slot.row for slot in line.images if slot.row]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        # Table 1's scales: those of the paper's Figures 1, 6 and 7.
        ("0.2 0.3 0.4 0.5 0.6 0.7 0.8 0.9 1 1.1 1.2 1.3", "0.4 0.7 1 1.3"),
        # Figure 2's scales: those of Figure 3.
        ("3.5 4 4.5 5 5.5 6 6.5", "3.5 4.5 5.5 6.5"),
        ("1.5 1.75 2", "1.5 1.75 2"),
        ("a", "a"),
    ],
)
def test_of_many_points_of_a_sweep_some_are_shown(values, shown):
    assert some_of(values.split()) == shown.split()


def test_a_swept_parameter_goes_down_and_methods_across_with_one_noise(undrawn_sweep):
    grid = chosen(undrawn_sweep)["grid_lora_scale_seed1"]
    assert grid.columns == ["LoRA", "AutoLoRA", "LoRA+CFG", "AutoLoRA+CFG"]
    assert [row.label for row in grid.rows] == ["0.4", "0.7", "1", "1.3"]
    assert grid.caption == "All images start from the same noise. Shown: 4 of 12 values."
    assert grid.prompt == "Anna"
    for line in grid.rows:
        for method, row in zip(grid.columns, rows_of(line), strict=True):
            found = (row["method"], row["lora_scale"], row["seed"])
            assert found == (method, float(line.label), 1)


def test_of_48_cells_the_methods_are_side_by_side_at_the_best_point(undrawn_sweep):
    grids = chosen(undrawn_sweep)
    assert list(grids) == ["grid_seeds_prompt0", "grid_lora_scale_seed0", "grid_lora_scale_seed1"]
    grid = grids["grid_seeds_prompt0"]
    table = read_run_view(undrawn_sweep).run.table
    best = table.loc[table["div_cps"].idxmax()]
    scale = f"{best['lora_scale']:g}"
    assert [row.label for row in grid.rows] == [
        f"{method} (LoRA scale {scale})"
        for method in ("LoRA", "AutoLoRA", "LoRA+CFG", "AutoLoRA+CFG")
    ]
    assert f"at LoRA scale {scale}, where {best['method']} has the best Div-CPS" in grid.caption
    assert "Shown: the first 8 of 9 seeds." in grid.caption
    for line in grid.rows:
        assert [row["seed"] for row in rows_of(line)] == list(range(8))


def test_two_swept_parameters_hold_each_other_fixed(tmp_path):
    benchmark = "disney_princess_autolora_scale"
    grids = chosen(write_table1_run(tmp_path / "run", n_seeds=2, benchmark=benchmark))
    grid = grids["grid_autolora_scale_seed0"]
    # LoRA with and without CFG has no such parameter.
    assert grid.columns == ["AutoLoRA", "AutoLoRA+CFG"]
    assert [row.label for row in grid.rows] == ["1.5", "1.75", "2"]
    scales = {row["lora_scale"] for line in grid.rows for row in rows_of(line)}
    assert len(scales) == 1
    assert f"Shown at LoRA scale {scales.pop():g}." in grid.caption
    assert len(grids["grid_lora_scale_seed0"].columns) == 4


def test_a_parameter_of_one_method_goes_across_and_seeds_down(tmp_path):
    methods = ("LoRA", *(f"M{n}" for n in range(10)))
    tables = make_tables(methods=methods, prompts=("one",), n_seeds=5)
    # Ten cells of one method, at ten points of an interval.
    for table in (tables.table, tables.scores, tables.diversity, tables.comparisons):
        table["method"] = table["method"].where(table["method"] == "LoRA", "AutoLoRA")
    for n, cell in enumerate(tables.manifest["cells"][1:]):
        cell |= {"method": "AutoLoRA", "point": {"interval": [n / 10, 1.0]}}
    grid = chosen(tables.write(tmp_path / "run"))["grid_interval"]
    assert grid.columns == ["0.1–1", "0.3–1", "0.5–1", "0.7–1", "0.9–1"]
    assert grid.caption == (
        "The images of a row start from the same noise. Shown: 5 of 10 values, the first 4 of 5 "
        "seeds."
    )
    for line in grid.rows:
        assert [row["cell"] for row in rows_of(line)] == [f"SDXL--M{n}" for n in (1, 3, 5, 7, 9)]
        assert {str(row["seed"]) for row in rows_of(line)} == {line.label}


@pytest.mark.parametrize(
    ("n_sets", "by_order", "caption"),
    [
        (1, False, "start from the same noise. Seeds of imported images come from their source."),
        (
            1,
            True,
            "start from the same noise. Imported images without seeds do not share noise with the "
            "others.",
        ),
        (4, False, "have the same seed. Seeds of imported images come from their source."),
    ],
)
def test_no_noise_is_claimed_for_images_made_elsewhere(tmp_path, n_sets, by_order, caption):
    tables = make_tables(n_seeds=2)
    cells = tables.table["cell"][:n_sets]
    tables.manifest["image_sets"] = dict.fromkeys(cells, IMAGE_SET | {"seeds_by_order": by_order})
    folder = tables.write(tmp_path / "run")
    assert chosen(folder)["grid_prompts_seed0"].caption.startswith(f"All images {caption}")
    said = build_content(read_run_view(folder)).compared
    assert ("All generated images use the same prompts and seeds." in said) == (n_sets < 4)


def test_prompts_go_down_and_methods_across_with_one_seed(tmp_path):
    prompts = tuple(f"prompt {n}" for n in range(9))
    folder = make_tables(prompts=prompts, n_seeds=2).write(tmp_path / "run")
    grid = chosen(folder)["grid_prompts_seed0"]
    assert [row.label for row in grid.rows] == list(prompts[:6])
    assert grid.caption == "All images start from the same noise. Shown: the first 6 of 9 prompts."
    for index, line in enumerate(grid.rows):
        rows = rows_of(line)
        assert [row["method"] for row in rows] == grid.columns
        assert {(row["prompt_index"], row["seed"]) for row in rows} == {(index, 0)}


def test_of_many_methods_the_first_are_shown_and_all_are_counted(tmp_path):
    methods = tuple(f"M{n}" for n in range(12))
    grids = chosen(make_tables(methods=methods).write(tmp_path / "run"))
    assert grids["grid_prompts_seed0"].columns == list(methods[:9])
    caption = "All images start from the same noise. Shown: the first 9 of 12 methods."
    assert grids["grid_prompts_seed0"].caption == caption
    assert len(grids["grid_seeds_prompt0"].rows) == 9
    assert "the first 9 of 12 methods" in grids["grid_seeds_prompt0"].caption


def test_the_most_and_the_least_diverse_prompt_are_shown_with_their_numbers(tmp_path):
    tables = make_tables(methods=("LoRA", "AutoLoRA"), prompts=("a", "b", "c"))
    tables.diversity["diversity"] = [0.2, 0.3, 0.1, 0.25, np.nan, 0.22]
    tables.diversity["standard_error"] = [0.01, 0.02, 0.03, np.nan, np.nan, 0.04]
    grid = chosen(tables.write(tmp_path / "run"))["grid_extremes"]
    assert [row.label for row in grid.rows] == [
        "LoRA, most: 0.300 ± 0.020 – b",
        "LoRA, least: 0.100 ± 0.030 – c",
        "AutoLoRA, most: 0.250 – a",
        "AutoLoRA, least: 0.220 ± 0.040 – c",
    ]
    for line, prompt in zip(grid.rows, "bcac", strict=True):
        for seed, row in enumerate(rows_of(line)):
            assert (row["prompt"], row["seed"]) == (prompt, seed)
            assert line.label.startswith(f"{row['method']},")


def test_one_prompt_has_no_grid_of_prompts(tmp_path):
    folder = make_tables(prompts=("one",)).write(tmp_path / "run")
    assert list(chosen(folder)) == ["grid_seeds_prompt0"]


def test_models_have_grids_of_their_own(tmp_path):
    folder = make_tables(models=("SDXL", "SD3"), methods=("LoRA", "AutoLoRA")).write(
        tmp_path / "run"
    )
    grids = chosen(folder)
    for name, model in (
        ("grid_seeds_prompt0_model1", "SDXL"),
        ("grid_prompts_seed0_model2", "SD3"),
    ):
        assert {row["model"] for line in grids[name].rows for row in rows_of(line)} == {model}


def test_only_so_many_images_are_opened(tmp_path):
    models = tuple(f"model {n}" for n in range(8))
    folder = make_tables(models=models, n_seeds=8).write(tmp_path / "run")
    planned = choose_grids(read_run_view(folder))
    found = image_grids(read_run_view(folder))
    assert len(found.thumbnails) <= IMAGES_READ
    # Methods by seed of two prompts are 64 images of each model; room is left for four models.
    assert len(found.grids) < len(planned)
    shown = [grid.name for grid in found.grids]
    assert shown[:8] == [f"grid_seeds_prompt{p}_model{m}" for m in (1, 2, 3, 4) for p in (0, 1)]


def test_a_file_shows_each_image_in_its_place(tmp_path):
    folder = make_tables(methods=("LoRA", "AutoLoRA"), prompts=("a", "b")).write(tmp_path / "run")
    grids = image_grids(read_run_view(folder))
    folder.figures.mkdir()
    (folder.figures / "grid_of_an_earlier_report.png").write_bytes(b"")
    files = write_grids(grids, folder.figures)
    assert sorted(folder.figures.iterdir()) == sorted(files)
    grid = next(grid for grid in grids.grids if grid.name == "grid_prompts_seed0")
    with Image.open(folder.figures / "grid_prompts_seed0.png") as image:
        pixels = np.asarray(image)
    # From the lower right corner: a margin of 12, images of 256 and gaps of 6 between them.
    for down, row in enumerate(reversed(grid.rows)):
        for left, shown in enumerate(reversed(row.images)):
            bottom = pixels.shape[0] - 12 - 6 - down * 262
            right = pixels.shape[1] - 12 - 6 - left * 262
            copy = grids.thumbnails[shown.name].image
            assert copy is not None
            assert np.array_equal(
                pixels[bottom - 256 : bottom, right - 256 : right], np.asarray(copy)
            )


@pytest.mark.parametrize("name", ["../secret.png", "{folder}/secret.png", "link.png"])
def test_an_image_outside_the_run_folder_is_not_opened(tmp_path, name):
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    run = tmp_path / "run"
    run.mkdir()
    (run / "link.png").symlink_to(tmp_path / "secret.png")
    file = name.format(folder=tmp_path)
    thumbnail = load_thumbnails(run, [file])[file]
    assert (thumbnail.data, thumbnail.image, thumbnail.uri) == (b"", None, "")
    assert "points outside its folder" in thumbnail.problem


@pytest.mark.parametrize(
    ("size", "expected", "enlarged", "suffix"),
    [
        ((64, 64), (64, 64), (256, 256), ".png"),
        ((100, 50), (100, 50), (200, 100), ".png"),
        ((256, 100), (256, 100), (256, 100), ".png"),
        ((257, 257), (129, 129), (129, 129), ".jpg"),
        ((1024, 512), (256, 128), (256, 128), ".jpg"),
        ((1, 3000), (1, 250), (1, 250), ".jpg"),
    ],
)
def test_thumbnails_are_at_most_256_pixels(size, expected, enlarged, suffix):
    for enlarge, expected_size in ((False, expected), (True, enlarged)):
        thumbnail = make_thumbnail(Image.new("RGBA", size, (200, 30, 40, 255)), enlarge=enlarge)
        with Image.open(io.BytesIO(thumbnail.data)) as image:
            assert (image.size, image.mode, thumbnail.suffix) == (expected_size, "RGB", suffix)


def test_pixel_art_keeps_its_pixels():
    art = np.random.default_rng(0).integers(0, 2, (32, 32, 1), dtype=np.uint8) * 255
    blocks = art.repeat(3, 2).repeat(32, 0).repeat(32, 1)
    with Image.open(io.BytesIO(make_thumbnail(Image.fromarray(blocks)).data)) as image:
        # 1024 pixels become 256: a block of 32 becomes one of 8. JPEG adds at most a few levels.
        found = np.asarray(image).astype(int)
    expected = art.repeat(3, 2).repeat(8, 0).repeat(8, 1).astype(int)
    assert np.abs(found - expected).max() <= 8
