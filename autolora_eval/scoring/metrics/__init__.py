"""Diversity metrics beside equation (8), one file each."""
