"""From a benchmark to the report: the stages in order, on this machine or on a Ray cluster."""
