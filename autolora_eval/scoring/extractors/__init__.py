"""The kinds of extractors, one declaration a file."""
