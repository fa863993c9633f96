"""Plugins: from a name to an object, for everything that can be extended."""
