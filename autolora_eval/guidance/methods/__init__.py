"""One file a method. A file added here is a method added: nothing else need change."""
