"""Every line of the page on safety has a test."""

from __future__ import annotations

import re
from pathlib import Path

from conftest import ROOT

# The beginning of a line, and the tests that prove it; none for a line that only warns.
PROOFS: dict[str, tuple[str, ...]] = {
    "A benchmark may name Python code": (),
    "`autolora-eval plan --no-code FILE`": ("test_a_third_party_benchmark_is_listed_and_not_run",),
    "`${NAME}` is replaced in paths": (
        "test_values_reach_neither_prompts_nor_the_run_folder",
        "test_a_launched_command_gets_the_values",
    ),
    "Only `HOME` and variables": ("test_only_some_variables_are_read",),
    "The values of variables": ("test_values_reach_neither_prompts_nor_the_run_folder",),
    "An API key": ("test_a_key_is_taken_only_from_a_variable_that_is_so_named_or_allowed",),
    "A row of `metadata.jsonl`": ("test_a_row_with_another_name_than_a_plans_is_refused",),
    "A file name or link": (
        "test_a_link_that_leads_out_is_refused_and_nothing_outside_is_touched",
    ),
    "`report`, `explain`, `compare`, `agreement`": (
        "test_explain_does_not_import_code_beside_the_run",
    ),
    "An image is scored only": (
        "test_a_picture_whose_bytes_are_not_those_of_its_record_is_not_scored",
    ),
    "Scores are always parsed": (
        "test_scores_are_those_of_the_reply_and_not_of_the_copy_beside_it",
    ),
    "Features that were changed": ("test_features_that_were_changed_are_refused",),
    "`report`, `explain` and `compare` refuse": (
        "test_report_explain_and_compare_refuse_an_edited_table",
    ),
    "`autolora-eval verify ARCHIVE`": (
        "test_an_archive_that_leads_out_is_refused_and_nothing_is_unpacked",
        "test_an_archive_cannot_grow",
        "test_a_changed_byte_is_found_by_the_name_of_its_file",
    ),
    "`autolora-eval verify RUN`": ("test_verify_says_what_is_missing_changed_or_extra",),
    "Code in a model folder": (
        "test_code_in_a_model_folder_is_never_run_and_the_user_is_not_asked",
    ),
    "Weights are read": ("test_weights_that_are_only_there_as_a_pickle_are_refused_with_advice",),
    "Images are read from": (
        "test_a_format_that_starts_programs_is_not_opened",
        "test_a_path_that_is_not_a_regular_file_is_missing_and_does_not_block",
        "test_a_file_of_too_many_bytes_is_neither_hashed_nor_opened",
        "test_a_picture_of_too_many_pixels_is_refused_by_its_header",
    ),
    "Images of more than 2048": (
        "test_a_picture_is_reduced_before_it_waits_in_a_batch",
        "test_ten_thousand_pixels_squared_take_less_than_a_gigabyte",
    ),
    "What is fetched is treated": (
        "test_a_file_with_the_name_of_another_place_is_refused",
        "test_a_link_is_not_followed",
    ),
    "Files at a URL that are not": ("test_files_of_something_else_are_not_changed",),
    "A URL with a password": ("test_a_url_that_cannot_be_used_is_one_message",),
    "A plugin is Python code": (),
    "Control characters": (
        "test_third_party_text_cannot_control_the_terminal",
        "test_commands_print_no_control_characters",
    ),
    "A text that a spreadsheet": ("test_no_cell_of_a_csv_file_is_a_formula_and_all_are_read_back",),
    "A damaged benchmark": ("test_hostile_input_is_refused_with_a_documented_error_or_read",),
    "Files are created": ("test_files_have_the_mode_of_the_users_umask",),
}


def test_every_line_of_the_page_on_safety_has_its_test() -> None:
    page = (ROOT / "docs" / "safety.md").read_text(encoding="utf-8")
    lines = re.findall(r"^- (.*)$", page, re.MULTILINE)
    unproven = [line for line in lines if not any(line.startswith(start) for start in PROOFS)]
    assert unproven == []
    assert len(lines) == len(PROOFS)
    tests = "".join(p.read_text(encoding="utf-8") for p in Path(ROOT / "tests").rglob("test_*.py"))
    named = [name for names in PROOFS.values() for name in names]
    assert [name for name in named if f"def {name}(" not in tests] == []
