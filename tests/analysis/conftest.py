"""Tests of tables and comparisons draw no report, unless they are marked `report`."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _no_report_but_where_it_is_tested(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("report") is None:
        request.getfixturevalue("no_report")
