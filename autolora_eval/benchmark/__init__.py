"""The benchmark file: read, checked, and every path in it resolved, before any model is loaded."""
