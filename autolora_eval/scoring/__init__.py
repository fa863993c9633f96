"""From images to features, diversity and judged scores."""
