"""Benchmark files: from YAML to a checked plan."""
