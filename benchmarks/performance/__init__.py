"""Benchmarks of speed and memory: `make performance`. They print ratios and fail no test."""
