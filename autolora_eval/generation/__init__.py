"""From image jobs to seed-controlled image datasets."""
