"""The charts of a run: one file a kind in `kinds/`, all drawn in one style, as SVG and PNG."""
