"""Figures: one file each; what they share starts with an underscore."""
