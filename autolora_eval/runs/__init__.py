"""The run folder: its files, its manifest, its readers."""
