"""Measures of diversity beside equation (8), one declaration a file."""
