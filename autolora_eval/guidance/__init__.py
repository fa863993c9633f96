"""Guidance rules: the paper's equations, the AutoLoRA guider, and the methods by name."""
