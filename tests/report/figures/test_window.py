"""One wild interval does not flatten a panel, and what is cut is said; usual ones are not cut."""

import pandas as pd
import pytest
from report.figures.made_up import draw, drawings, made_up, panels, with_values

from autolora_eval.report.figures._style import clipped_limits

SWEEP = {"lora_scale": ["0.4", "0.7", "1"]}


def cells(*rows: tuple[float, float, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["pc", "pc_low", "pc_high"])


def test_an_interval_far_longer_than_the_others_is_cut_at_as_much_room_as_the_values_take() -> None:
    found = clipped_limits(cells((1.0, 0.9, 1.1), (2.0, 1.9, 2.1), (1.5, 0.0, 50.0)), "pc")
    # Values from 1 to 2, so that 0 and 3 are the ends; a twentieth of that is margin.
    assert found == pytest.approx((-0.15, 3.15))


@pytest.mark.parametrize(
    "rows",
    [
        ((1.0, 0.0, 2.0), (1.01, 0.0, 2.0)),  # the values hardly differ, and all are as vague
        ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
        ((1.0, float("nan"), float("nan")), (2.0, float("nan"), float("nan"))),
        ((float("nan"),) * 3,),
    ],
)
def test_usual_intervals_are_not_cut(rows: tuple[tuple[float, float, float], ...]) -> None:
    assert clipped_limits(cells(*rows), "pc") is None


def test_published_values_are_never_cut() -> None:
    found = clipped_limits(
        cells((1.0, 0.9, 1.1), (2.0, 1.9, 99.0)).assign(pc_published=[7.0, 1.0]), "pc"
    )
    assert found is not None
    assert found[1] > 7.0


@pytest.mark.parametrize("kind", ["sweep", "cost"])
def test_the_figures_clip_long_intervals_and_say_so(kind: str) -> None:
    data = made_up(sweep=SWEEP)
    assert all("Clipped at the edge" not in drawing.caption for drawing in drawings(kind, data))
    wild = with_values(data, div_pc_high={data.table["cell"].iloc[0]: 500.0})
    captions = [drawing.caption for drawing in drawings(kind, wild)]
    assert any("longer than the others: intervals of Div-PC." in caption for caption in captions)
    assert all(axis.get_ylim()[1] < 50.0 for axis in panels(draw(kind, wild)))
