"""Images of a set are matched with the prompts and seeds of a benchmark; none is lost."""

from pathlib import Path

import numpy as np
import pytest
from image_files import jobs, listing, names, record, tree

from autolora_eval._errors import UsageError
from autolora_eval.generation.image_sets import ImageSet, Matching, match
from autolora_eval.runs.manifest import ImageJob

pytestmark = pytest.mark.model

PROMPTS = ("a cat", "a dog, pixel art")
JOBS = tuple(ImageJob(index, p, seed) for index, p in enumerate(PROMPTS) for seed in (3, 4))


def extra(matching: Matching) -> list[tuple[str, str]]:
    return [(one.record.name, one.reason) for one in matching.extra]


def test_missing_and_extra_images_are_all_listed():
    matching = match(listing(("a cat", 3), ("a cat", 9), ("a cow", 3), (" a \n cat", 4)), JOBS)
    assert len(matching.found) == 2
    assert matching.missing == list(JOBS[2:])
    assert extra(matching) == [
        ("1.png", "no such seed in the benchmark"),
        ("2.png", "no such prompt in the benchmark"),
    ]


def test_found_and_extra_are_the_set_and_found_and_missing_the_benchmark():
    rng = np.random.default_rng(0)
    prompts = [*PROMPTS, "a cow", None]
    for _ in range(200):
        chosen = {(prompts[rng.integers(4)], int(rng.integers(2, 6))) for _ in range(6)}
        chosen.add(("a cat", 3))
        images = listing(*sorted(chosen, key=str))
        matching = match(images, JOBS)
        seen = [*matching.found.values(), *(one.record for one in matching.extra)]
        assert sorted(r.name for r in seen) == sorted(r.name for r in images.records)
        assert sorted([*matching.found, *matching.missing], key=JOBS.index) == list(JOBS)


def test_images_without_seeds_take_the_seeds_of_the_benchmark_in_order():
    named = [("a cat", None), ("a dog, pixel art", None), ("a cat", None), ("a cat", None)]
    matching = match(listing(*named), JOBS)
    assert matching.seeds_by_order
    assert [(job.prompt, job.seed, r.name) for job, r in matching.found.items()] == [
        ("a cat", 3, "0.png"),
        ("a dog, pixel art", 3, "1.png"),
        ("a cat", 4, "2.png"),
    ]
    assert extra(matching) == [("3.png", "the benchmark has only 2 seeds")]


def test_extra_images_with_a_number_do_not_give_the_others_seeds():
    named = [(None, 1), ("a-cat", None), ("a-cat", None)]
    matching = match(listing(*named, by_folder=True), jobs("a cat", "a dog", seeds=2))
    assert matching.seeds_by_order
    assert [(job.seed, r.name) for job, r in matching.found.items()] == [(0, "1.png"), (1, "2.png")]


def counted(n_images: int, n_seeds: int, name: str = "{}.png") -> tuple[bool, int]:
    """Match `a cat/1.png` … with seeds from 0: whether they are taken in order, and how many."""
    records = [record(name.format(n), "a cat", n) for n in range(1, n_images + 1)]
    found = match(
        ImageSet(Path("set"), "tree", records, by_folder=True), jobs("a cat", seeds=n_seeds)
    )
    return found.seeds_by_order, len(found.found)


def test_file_names_that_count_from_one_are_not_seeds_from_zero():
    assert counted(4, 4) == (True, 4)
    assert counted(6, 4) == (True, 4)
    assert counted(3, 4) == (False, 3)
    assert counted(4, 4, "seed_{}.png") == (False, 3)


def test_seeds_of_another_benchmark_are_named_with_what_to_change():
    with pytest.raises(UsageError, match=r"seeds: 7 …\. .* Only the seeds differ: .* 3, 4 …"):
        match(listing(("a cat", 7), by_folder=True), JOBS)


def test_a_benchmark_with_one_prompt_needs_no_folder():
    matching = match(listing((None, 0), (None, 1), by_folder=True), jobs("Zib", seeds=2))
    assert (len(matching.found), matching.missing, matching.extra) == (2, [], [])


def test_two_images_with_one_prompt_and_seed_are_refused_by_name():
    with pytest.raises(UsageError, match=r"'a cat', seed 3: 0\.png, 1\.png"):
        match(listing(("a cat", 3), ("a cat", 3)), JOBS)


def test_a_set_without_a_match_is_refused_with_the_prompts_of_both_sides():
    with pytest.raises(UsageError) as raised:
        match(listing(("a cow", 1)), JOBS)
    assert "Prompts of the set: a cow …; seeds: 1 …" in str(raised.value)
    assert "Prompts of the benchmark: 'a cat' …, seeds 3 to 4." in str(raised.value)
    with pytest.raises(UsageError, match="Name each folder after its prompt"):
        match(tree("a cow"), JOBS)


@pytest.mark.parametrize(
    "folder",
    ["a dog, pixel art", "a-dog-pixel-art", "A_DOG,_PIXEL_ART", "a dog pixel art", "1", "001"],
)
def test_a_folder_names_a_prompt_by_text_letters_or_index(folder):
    asked = jobs(*PROMPTS)
    assert names(match(tree(folder), asked).found) == {PROMPTS[1]: f"{folder}/0.png"}


def test_a_folder_name_reduced_to_ascii_matches_its_prompt():
    assert names(match(tree("cat"), jobs("猫 cat", "dog")).found) == {"猫 cat": "cat/0.png"}


def test_an_index_is_not_a_prompt_of_a_listing():
    with pytest.raises(UsageError, match="none of the 1 images"):
        match(listing(("0", 3)), JOBS)


def test_the_text_of_a_prompt_takes_precedence_over_an_index():
    assert names(match(tree("0"), jobs("a cat", "0")).found) == {"0": "0/0.png"}


def test_a_folder_that_fits_two_prompts_matches_neither():
    matching = match(tree("a-cat", "a-dog"), jobs("a cat!", "a cat?", "a dog"))
    assert [job.prompt for job in matching.missing] == ["a cat!", "a cat?"]
    reason = "its folder may be any of 2 prompts: 'a cat!', 'a cat?'"
    assert extra(matching) == [("a-cat/0.png", reason)]
    found = match(tree("A cat", "a cat"), jobs("A cat", "a cat")).found
    assert names(found) == {"A cat": "A cat/0.png", "a cat": "a cat/0.png"}


def test_folders_numbered_from_one_are_refused():
    asked = jobs("a cat", "a dog")
    with pytest.raises(UsageError, match=r"folders 1 to 2 for 2 prompts\. Indices start at 0"):
        match(tree("1", "2"), asked)
    assert names(match(tree("1"), asked).found) == {"a dog": "1/0.png"}
    assert names(match(tree("0", "2"), asked).found) == {"a cat": "0/0.png"}


def test_composed_and_decomposed_accents_are_equal():
    """File systems write é as one code point or as two."""
    matching = match(tree("un cafe\u0301"), jobs("un caf\u00e9"))
    assert names(matching.found) == {"un caf\u00e9": "un cafe\u0301/0.png"}


def test_prompts_that_differ_in_white_space_only_are_two_prompts():
    records = [record("0", "a  cat"), record("1", "a cat")]
    matching = match(ImageSet(Path("set"), "listing", records), jobs("a cat", "a  cat"))
    assert names(matching.found) == {"a cat": "1", "a  cat": "0"}
