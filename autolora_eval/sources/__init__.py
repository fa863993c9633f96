"""What a benchmark names: files, variables, and models with the hashes of their files."""
