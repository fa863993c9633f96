"""The synthetic run as a fixture."""

from collections.abc import Callable

import pytest
from report.synthetic_run import Tables, make_tables


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Tables]:
    """Return the maker of synthetic runs."""
    return make_tables
