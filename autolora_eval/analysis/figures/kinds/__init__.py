"""One file a kind of figure. A file added here is a kind added: nothing else need change."""
