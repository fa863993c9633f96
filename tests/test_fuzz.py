"""Hostile input ends in a documented error or well: a hundred cases of each kind."""

from __future__ import annotations

import pytest
from fuzz import Fuzzer
from fuzz_inputs import INPUTS

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
CASES = {"runs": 5, "archives": 40}


@pytest.mark.parametrize("name", INPUTS)
def test_hostile_input_is_refused_with_a_documented_error_or_read(tmp_path, name) -> None:
    fuzzer = Fuzzer(INPUTS[name], tmp_path)
    fuzzer.run(CASES.get(name, 100), number=0)
    assert sum(fuzzer.counts.values()) > 0
