"""The caveats on the first page: what a reader must know before the numbers."""

import re

import pandas as pd
from report.readers import content_of, first_page_text
from report.synthetic_run import IMAGE_SET, make_tables, two_methods


def test_methods_whose_images_were_made_one_at_a_time_are_a_caveat(tmp_path):
    folder = two_methods().write(tmp_path / "run")
    assert "one at a time" not in first_page_text(folder)
    folder.timings.write_text(
        "cell,n_timed,n_made_alone,seconds_per_image\nSDXL--AutoLoRA,6,6,4.5\nSDXL--LoRA,6,0,2\n"
    )
    text = first_page_text(folder)
    assert "The images of SDXL × AutoLoRA were made one at a time, because the guider lets" in text


def test_many_cells_whose_images_were_made_one_at_a_time_are_counted(tmp_path):
    """They may be points of one method."""
    folder = make_tables(methods=tuple("abcdef")).write(tmp_path / "run")
    timings = pd.read_csv(folder.timings).assign(n_made_alone=6)
    timings.to_csv(folder.timings, index=False)
    assert "SDXL × d and 2 more cells were made one at a time" in first_page_text(folder)


def test_miniature_models_and_a_limited_run_are_caveats(tmp_path):
    tables = make_tables(n_seeds=2)
    plain = first_page_text(tables.write(tmp_path / "plain"))
    tables.manifest["limit_seeds"] = 3
    tables.manifest["models"]["SDXL"]["pipeline"]["name"] = "miniature:sdxl"
    tables.manifest["judge"]["model"] = "miniature:judge"
    text = first_page_text(tables.write(tmp_path / "run"))
    caveats = ("SDXL and the judge are miniature models", "They say nothing about SDXL or SD3")
    for caveat in (*caveats, "limited to 2 prompts and 2 seeds"):
        assert caveat in text
    assert not re.search("miniature|limited", plain)


def test_images_made_elsewhere_are_a_caveat(tmp_path):
    tables = make_tables(methods=("LoRA", "Theirs"))
    counts = {"missing": 1, "unusable": 2, "extra": 4, "duplicate": 0, "wrong_size": 3}
    tables.manifest["image_sets"] = {
        "SDXL--Theirs": IMAGE_SET | {"matched": 5, "seeds_by_order": True} | counts
    }
    text = first_page_text(tables.write(tmp_path / "run"))
    assert "SDXL × Theirs: 5 imported images: 1 missing," in text
    assert "2 unusable, 4 not in the benchmark and left out, 3 of another size than the" in text
    assert "model's. Their prompts, seeds and NFE come from their source." in text
    assert "Their seeds are not known: pairs with other methods do not share noise." in text
    assert "identical to another" not in text


def test_prompts_that_are_not_read_to_their_end_are_a_caveat(tmp_path):
    tables = two_methods()
    encoders = ["text_encoder", "text_encoder_2"]
    cut = {"encoders": encoders, "tokens": 82, "limit": 77, "read": "a red <b>heart</b>"}
    tables.manifest["prompt_cuts"] = {
        "SDXL": {"cut": [cut | {"name": f"prompt {n}"} for n in range(1, 6)], "same": [[1, 2]]}
    }
    caveats = content_of(tables.write(tmp_path / "run")).first.caveats
    assert caveats[0].startswith(
        "SDXL: 5 prompts are longer than a text encoder reads. Of prompt 1,"
    )
    assert "Of prompt 4, text_encoder and text_encoder_2 read 77 of 82 tokens, up to" in caveats[0]
    assert caveats[0].endswith("“…a red <b>heart</b>”. 1 more place is listed in manifest.json.")
    assert caveats[1] == (
        "SDXL: prompts 1 and 2 are the same to every text encoder: their images are identical, "
        "but they count as different prompts."
    )


def test_differences_between_and_within_runs_are_caveats(tmp_path):
    tables = two_methods()
    messages = ["seeds: 3 in a, 4 in b; only the 3 that all have are compared.", "<b>&#x41; *x* $y"]
    messages += [f"model '{n}' differs" for n in range(6)]
    tables.manifest["differences"] = [
        {"what": "seeds", "severity": "note", "message": message} for message in messages
    ]
    tables.manifest["libraries"] = ["torch 2.8.0, peft 0.18.0", "torch 2.9.0, peft 0.18.0"]
    caveats = content_of(tables.write(tmp_path / "run")).first.caveats
    assert caveats == [
        *(f"Compared runs: {message}" for message in messages[:6]),
        "Compared runs: 2 more differences, listed in manifest.json.",
        "The images were made with different versions of libraries: torch 2.8.0 and 2.9.0. This "
        "alone can change images. metadata.jsonl has the versions for each image.",
    ]


def test_what_affects_many_cells_is_one_caveat(tmp_path):
    tables = make_tables(methods=tuple(f"M{n}" for n in range(7)), n_seeds=1)
    tables.table[["n_missing", "n_undefined_prompts"]] = [1, 2]
    tables.diversity["reason"] = "needs at least 2 images, has 1"
    text = first_page_text(tables.write(tmp_path / "run"))
    assert "Diversity is undefined for 14 prompts in 7 of 7 cells, which the means leave" in text
    assert "7 images are missing or unreadable (1 of SDXL × M0, 1 of SDXL × M1, " in text
    assert "1 of SDXL × M3, and of 3 more cells)." in text
