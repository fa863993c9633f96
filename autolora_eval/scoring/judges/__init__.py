"""The judge behind one small interface, and the ways to reach it."""
