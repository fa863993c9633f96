"""A rubric for tests to change."""

from __future__ import annotations

GOOD = """\
name: mine
placeholders: {image: "<I>", prompt: "<P>"}
scores:
  pc: {key: correspondence, display_name: Prompt correspondence}
  sa: {key: style, display_name: Style, min: 1, max: 7}
text: |
  First <P>.
  <I>
  Does it show <P>, or {not}?
"""
