"""Guiders for the tests of the checks: a good one, unusual good ones, and faulty ones.

`FAULTS` has the faulty guiders, each a copy of `Good` with one fault, and `GOOD` the unusual ones.
"""

from guiders import faulty_interface, faulty_predictions
from guiders.base import FAULTS, Good
from guiders.good import GOOD

__all__ = ["FAULTS", "GOOD", "Good", "faulty_interface", "faulty_predictions"]
