"""The columns that the tables have whatever was run, so that no score or parameter is called so."""

from __future__ import annotations

_COMPUTED = frozenset(
    (
        *(
            "cell",
            "model",
            "method",
            "guider",
            "sampler",
            "images",
            "prompt",
            "prompt_index",
            "seed",
        ),
        *("image_id", "file", "sha256", "nfe", "unscored_reason", "image_error", "n_images"),
        *("n_missing", "n_unscored", "n_undefined_prompts", "diversity", "reason", "rater"),
        *("lora_scale", "num_inference_steps"),
    )
)
_ENDINGS = ("_low", "_high", "_published", "_prompt_mean", "_expected")
_BEGINNING = "div_"
# Those that diversity.csv has besides, and what stands beside a measure's column there.
_OF_PROMPTS, _REASON = frozenset(("n", "standard_error", "reference_cell")), "_reason"


def is_computed(column: str) -> bool:
    """Tell whether a column of that name is computed, and cannot be a score's or parameter's."""
    return column in _COMPUTED or column.startswith(_BEGINNING) or column.endswith(_ENDINGS)


def parameter_column(parameter: str) -> str:
    """Return the column of a method's parameter: its name, unless that is a computed column's."""
    return f"parameter_{parameter}" if is_computed(parameter) else parameter


def is_no_measure(column: str) -> bool:
    """Tell whether a measure of diversity cannot be called so: its column would be another's."""
    return is_computed(column) or column in _OF_PROMPTS or column.endswith(_REASON)
