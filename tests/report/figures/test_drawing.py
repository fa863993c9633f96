"""All figures of a run: order, files, the same bytes twice, and texts that stay texts."""

import re
import xml.etree.ElementTree as ElementTree

import pytest
from PIL import Image
from report.figures.made_up import INTERVALS, LORA_SCALES, SCORES, Kind, made_up, with_values

from autolora_eval.report.figures._base import DrawnFigure, draw_figures
from autolora_eval.report.figures._style import MAX_HEIGHT, WIDTH

pytestmark = pytest.mark.e2e

SVG = "{http://www.w3.org/2000/svg}"


def texts(figure: DrawnFigure) -> list[str]:
    root = ElementTree.parse(figure.svg).getroot()
    return [element.text or "" for element in root.iter(f"{SVG}text")]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[DrawnFigure]:
    """Every figure of a run of 48 cells × 64 images."""
    data = made_up(sweep={"lora_scale": LORA_SCALES}, n_seeds=64, scores={"pc": SCORES["pc"]})
    return draw_figures(data, tmp_path_factory.mktemp("figures"))


def test_a_run_of_48_cells_has_every_figure(drawn):
    assert [figure.kind for figure in drawn] == [
        *("diversity_vs_scores", "sweep", "cost", "paired_differences", "score_distributions")
    ]
    for figure in drawn:
        assert figure.svg.name == f"{figure.name}.svg"
        assert figure.title
        assert figure.caption.endswith(".")
        assert figure.text.endswith(".")
        assert figure.svg.stat().st_size < 250_000
        with Image.open(figure.png) as image:
            image.load()
            assert image.width == round(WIDTH * 200)
            assert image.height <= MAX_HEIGHT * 200


def test_every_text_is_at_least_6_points_high_and_inside_the_figure(drawn):
    for figure in drawn:
        root = ElementTree.parse(figure.svg).getroot()
        width, height = (float(v) for v in root.attrib["viewBox"].split()[2:])
        assert width == pytest.approx(WIDTH * 72)
        for element in root.iter(f"{SVG}text"):
            size = re.search(r"([0-9.]+)px", element.attrib["style"])
            assert size is not None
            assert float(size[1]) >= 6.0, element.text
            transform = element.attrib.get("transform", "")
            place = re.search(r"translate\(([-0-9.]+) ([-0-9.]+)\)", transform)
            x, y = place.groups() if place else (element.attrib["x"], element.attrib["y"])
            assert 0 <= float(x) <= width, element.text
            assert 0 <= float(y) <= height, element.text


HOSTILE = [r"$x^2$ \alpha", "_mine", "<script>&", "狐狸 🦊", "M" * 80, "a\x00b\x1b[31m", "%s {} `"]


def squeezed(text: str) -> str:
    return re.sub(r"\s+", " ", "".join(c if c.isprintable() else " " for c in text))


# The warnings are of a character without a glyph, and of a layout that names leave no room for.
@pytest.mark.filterwarnings("error::UserWarning")
def test_names_are_drawn_as_they_are_written(tmp_path):
    data = made_up(
        models=("SDXL", HOSTILE[0]),
        methods=("LoRA", *HOSTILE),
        sweep={HOSTILE[2]: ["1", HOSTILE[4]]},
        taken_by={HOSTILE[2]: [HOSTILE[1]]},
        scores={"pc": SCORES["pc"].model_copy(update={"display_name": HOSTILE[6]})},
        n_prompts=2,
        n_seeds=2,
    )
    figures = draw_figures(data, tmp_path)
    written = {f.name: squeezed(" ".join(texts(f))) for f in figures}  # each file is valid XML
    for name in HOSTILE:
        assert squeezed(name[:16]) in written["diversity_vs_scores"], name
        start = name[:16] if len(name) < 30 else name[:5]  # the rest of its room is the model's
        assert squeezed(start) in written["paired_differences"], name
    for figure, text in written.items():
        assert any(squeezed(name[:16]) in text for name in HOSTILE), figure


def test_long_names_that_differ_only_at_their_ends_stay_distinct(tmp_path):
    ends = ("every 4th step", "every 10th step", "the middle half")
    methods = [f"AutoLoRA that evaluates the base model less often: {end}" for end in ends]
    for figure in draw_figures(made_up(methods=("LoRA", *methods), n_prompts=2), tmp_path):
        names = [text for text in texts(figure) if "…" in text]
        assert len(set(names)) == len(names) == len(methods), figure.name


def test_two_models_of_one_name_in_files_do_not_overwrite_each_other(tmp_path):
    data = made_up(
        models=("a b", "a/b"),
        methods=("LoRA",),
        sweep={"lora_scale": ["0.4", "1"], "guidance_scale": ["3", "5"]},
        scores={},
    )
    mine = {tmp_path / "mine.png", tmp_path / "costs.svg"}
    for file in (*mine, tmp_path / "sweep_seen_before.svg", tmp_path / "cost_2.png"):
        file.touch()
    figures = draw_figures(data, tmp_path)
    names = [figure.name for figure in figures if figure.kind == "sweep"]
    assert names[:2] == ["sweep_lora_scale_a-b", "sweep_lora_scale_a-b_2"]
    drawn = {file for figure in figures for file in (figure.svg, figure.png)}
    assert {*tmp_path.iterdir()} == drawn | mine, "figures of an earlier report are deleted"
    assert len(drawn) == 2 * len(figures)


@pytest.mark.parametrize("kind", [Kind("sweep"), Kind("cost")], ids=str)
def test_the_figures_clip_long_intervals_and_say_so(kind):
    data = made_up(sweep={"lora_scale": ["0.4", "0.7", "1"]})
    assert "cut off at the edge" not in kind.caption(data)
    wild = with_values(data, div_pc_high={data.table["cell"].iloc[0]: 500.0})
    assert "Some intervals of Div-PC are cut off at the edge" in kind.caption(wild)
    assert all(axis.get_ylim()[1] < 50.0 for axis in kind.panels(wild))


@pytest.mark.parametrize(
    "make",
    [
        lambda: made_up(methods=("one",), scores={}, n_seeds=1),
        lambda: made_up(("A", "B"), ("one", "two"), {"interval": INTERVALS[:2]}, n_prompts=2),
    ],
)
def test_runs_with_nothing_known_are_drawn_and_name_what_is_missing(tmp_path, make):
    data = make()
    for column in data.table.columns[4:]:
        if column != "nfe":
            data.table[column] = float("nan")
    data.scores.loc[:, [c for c in ("pc", "sa") if c in data.scores]] = float("nan")
    for column in data.comparisons.columns.intersection(["difference", "low", "high"]):
        data.comparisons[column] = float("nan")
    figures = draw_figures(data, tmp_path)
    assert "Not in every panel because a value is missing:" in figures[0].caption
    assert "Pareto" not in figures[0].caption
