"""One file per method. A file that is added here adds a method; nothing else has to change."""
