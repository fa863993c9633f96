"""The judge's server as a child of the run, and what can be served here at all."""
