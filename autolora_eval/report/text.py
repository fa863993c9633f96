"""The old place of `autolora_eval.text`, until nothing imports it from here."""

from autolora_eval.text import *  # noqa: F403
