"""Diversity metrics besides equation (8), one file each."""
