"""The gallery in a real browser: clicks, keys, what is seen, and that nothing leaves the file."""

from collections.abc import Iterator

import pandas as pd
import pytest
from report.browser import NAMES, Browser, find_browser
from report.hostile_run import HOSTILE, METHODS, MODELS, REASONS, REPLIES

from autolora_eval._text import image_link
from autolora_eval.runs.folder import RunFolder

EXECUTABLE = find_browser()
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(EXECUTABLE is None, reason=f"no browser: none of {', '.join(NAMES)}"),
]


@pytest.fixture(scope="module")
def run(hostile: RunFolder) -> RunFolder:
    return hostile


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert EXECUTABLE is not None
    with Browser(EXECUTABLE) as found:
        yield found


@pytest.fixture
def page(browser: Browser, run: RunFolder) -> Iterator[Browser]:
    """The report, opened; whatever a test does, nothing is asked for and nothing complains."""
    browser.open(run.report_html)
    yield browser
    assert browser.requests()[0].startswith(run.report_html.as_uri())
    assert len(browser.requests()) == 1
    assert browser.complaints() == []
    assert browser.run("typeof window.pwned") == "undefined"


def scores_of(run: RunFolder) -> pd.DataFrame:
    """Return scores.parquet in the gallery's order: prompt, seed, then cell."""
    scores = pd.read_parquet(run.scores)
    cells = {cell: n for n, cell in enumerate(pd.read_parquet(run.table("parquet"))["cell"])}
    return scores.assign(place=scores["cell"].map(cells)).sort_values(
        ["prompt_index", "seed", "place"]
    )


def shown(page: Browser) -> list[str]:
    """Return the files of the images that are seen, in order."""
    script = "[...document.querySelectorAll('#gallery-images button')]"
    found: list[str] = page.run(
        f"{script}.filter((b) => b.checkVisibility()).map(b => b.dataset.file)"
    )
    return found


def text(page: Browser, selector: str) -> str:
    return str(page.run(f"document.querySelector('{selector}').textContent"))


def test_the_first_are_shown_and_more_on_request(page, run):
    everything = list(scores_of(run)["file"])
    assert shown(page) == everything[:96]
    assert text(page, "#gallery-count") == ("Showing 96 of 192 images.")
    assert text(page, "#gallery-more") == "Show 96 more of 96"
    page.click("#gallery-more")
    assert shown(page) == everything
    assert page.run("document.querySelector('#gallery-more').checkVisibility()") is False
    # Reading goes on where it was.
    assert page.run("document.activeElement.dataset.file") == everything[96]
    loaded = "[...document.querySelectorAll('#gallery img')].filter((i) => i.naturalWidth === 64)"
    assert page.run(f"{loaded}.length") == 192


@pytest.mark.parametrize("method", METHODS)
def test_filters_by_method_and_score_agree_with_pandas(page, run, method):
    page.choose("[name='cell.method']", method)
    page.choose("[name=score]", "sa")
    page.write("[name=min]", "1.5")
    page.write("[name=max]", "4")
    scores = scores_of(run)
    kept = scores[(scores["method"] == method) & scores["sa"].between(1.5, 4)]
    assert 0 < len(kept) < 48
    assert shown(page) == list(kept["file"])
    expected = f"Showing {len(kept)} of {len(kept)} that match, of 192 images"
    assert text(page, "#gallery-count").startswith(expected)
    page.click("#gallery-clear")
    assert shown(page) == list(scores["file"])[:96]


def test_filters_by_prompt_model_and_seed_agree_with_pandas(page, run):
    page.choose("[name=prompt]", "2")
    page.choose("[name='cell.model']", MODELS[1])
    page.choose("[name=seed]", "4")
    kept = scores_of(run).query("prompt_index == 2 and model == @MODELS[1] and seed == 4")
    assert shown(page) == list(kept["file"])
    assert len(kept) == 4


@pytest.mark.parametrize("reason", [None, *REASONS])
def test_the_unscored_are_found_by_their_reason(page, run, reason):
    message = {None: "", "missing_score:sa": ": missing score: sa"}.get(reason, f": {reason}")
    page.choose("[name=judgement]", f"unscored{message}")
    scores = scores_of(run)
    found = scores["unscored_reason"]
    kept = scores[found.notna() if reason is None else found == reason]
    assert len(kept) > 0
    assert shown(page) == list(kept["file"])[:96]


def test_a_bound_on_a_score_leaves_out_what_has_none(page, run):
    page.write("[name=min]", "0")
    scores = scores_of(run)
    assert shown(page) == list(scores[scores["pc"].notna()]["file"])[:96]


@pytest.mark.parametrize(
    ("order", "column", "ascending"),
    [
        *(("highest:sa", "sa", False), ("lowest:sa", "sa", True)),
        *(("seed", "seed", True), ("cell", "place", True)),
    ],
)
def test_sorting_agrees_with_pandas_and_puts_the_unscored_last(page, run, order, column, ascending):
    page.choose("[name=sort]", order)
    page.click("#gallery-more")
    expected = scores_of(run).sort_values(column, ascending=ascending, kind="stable")
    assert shown(page) == list(expected["file"])


@pytest.mark.parametrize("reply", HOSTILE)
def test_a_reply_is_shown_char_for_char_and_runs_nothing(page, run, reply):
    scores = pd.read_parquet(run.scores)
    n = next(
        n
        for n, reason in enumerate(scores["unscored_reason"])
        if n % len(REPLIES) == REPLIES.index(reply) and pd.isna(reason)
    )
    row = scores.loc[n]
    page.choose("[name=prompt]", str(row["prompt_index"]))
    page.choose("[name='cell.model']", row["model"])
    page.choose("[name='cell.method']", row["method"])
    page.click(f"#gallery-images li:nth-child({row['seed'] + 1}) button")
    assert page.run("document.querySelector('dialog').matches(':modal')") is True
    assert text(page, "#gallery-replies pre") == reply
    terms = "[...document.querySelectorAll('#gallery-facts dt')]"
    facts = dict(page.run(f"{terms}.map((dt) => [dt.textContent, dt.nextSibling.textContent])"))
    for key in ("File", "Seed", "Method"):
        assert facts[key] == str(row[key.lower()])
    assert facts["Prompt"].startswith(row["prompt"][:100])
    assert facts["SHA-256"] == row["sha256"]
    assert facts["Style adherence (SA)"] == f"{row['sa']:g} (range 0 to 5)"
    assert page.run("document.querySelectorAll('dialog script, dialog b, dialog i').length") == 0


def test_keys_open_step_and_close(page, run):
    files = list(scores_of(run)["file"])
    focused = "document.activeElement.dataset.file"
    is_open = "document.querySelector('dialog').open"
    page.run("document.querySelector('#gallery-clear').focus()")
    page.press("Tab")
    assert page.run(focused) == files[0]
    page.press("ArrowRight", 2)
    assert page.run(focused) == files[2]
    page.press("ArrowDown")
    columns = files.index(page.run(focused)) - 2
    tops = "document.querySelectorAll('#gallery-images li')"
    assert page.run(f"{tops}[{columns}].offsetTop > {tops}[{columns - 1}].offsetTop") is True
    page.press("ArrowUp")
    page.press("ArrowLeft")
    assert page.run(focused) == files[1]
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.run(outline) == "solid"
    page.press("Enter")
    assert page.run(is_open) is True
    assert text(page, "#gallery-place") == "2 of 192"
    page.press("ArrowRight", 2)
    assert text(page, "#gallery-place") == "4 of 192"
    page.press("ArrowLeft", 4)
    assert text(page, "#gallery-place") == "192 of 192"
    page.press("Escape")
    assert page.run(is_open) is False
    # The last is drawn, so that the focus can go where the reader was.
    assert page.run(focused) == files[191]


def test_buttons_of_the_dialog_step_and_close(page):
    page.click("#gallery-images button")
    page.click("[aria-label='Next image']")
    assert text(page, "#gallery-place") == "2 of 192"
    page.click("[aria-label='Previous image']")
    assert text(page, "#gallery-place") == "1 of 192"
    page.click("[aria-label='Close']")
    assert page.run("document.querySelector('dialog').open") is False


def test_a_link_opens_an_image_and_the_address_names_it(browser, run):
    files = list(scores_of(run)["file"])
    browser.open(run.report_html, image_link(files[150]))
    assert text(browser, "#gallery-facts").count(files[150]) == 1
    browser.press("ArrowRight")
    assert browser.run("decodeURIComponent(location.hash)") == f"#image={files[151]}"
    browser.press("Escape")
    assert browser.run("location.hash") == "#gallery"
    # A grid shows the first prompt's first seeds: so does the gallery.
    browser.click(f".images a[href='{image_link(files[3])}']")
    assert text(browser, "#gallery-place") == "4 of 192"
    assert browser.complaints() == []


@pytest.mark.parametrize("fragment", ["#image=images/none.png", "#image=%E0%A4%A", "#image"])
def test_a_link_to_an_image_that_is_not_there_says_so(browser, run, fragment):
    browser.open(run.report_html, fragment)
    assert browser.run("document.querySelector('dialog').open") is False
    assert len(shown(browser)) == 96
    said = "does not contain the image" in text(browser, "#gallery-count")
    assert said == (fragment != "#image=%E0%A4%A")
    assert browser.complaints() == []


def test_a_filter_is_kept_in_the_address(page, run):
    page.choose("[name='cell.method']", METHODS[3])
    page.choose("[name=score]", "sa")
    page.write("[name=min]", "2")
    before, address = shown(page), page.run("location.hash")
    page.open(run.report_html, address)
    assert shown(page) == before
    assert page.run("document.querySelector('[name=min]').value") == "2"


def test_a_number_of_the_table_leads_to_the_images_of_its_cell(page, run):
    links = page.run(
        "[...document.querySelectorAll('.results a')].map((a) => a.getAttribute('href'))"
    )
    cells = list(pd.read_parquet(run.table("parquet"))["cell"])
    scores = scores_of(run)
    distinct = list(dict.fromkeys(links))
    assert len(distinct) == len(cells)
    page.choose("[name=seed]", "0")  # a filter of the reader's own stays
    for cell, link in [*zip(cells, distinct, strict=True)][::3]:
        page.click(f".results a[href='{link}']")
        of_cell = scores[(scores["cell"] == cell) & (scores["seed"] == 0)]
        assert shown(page) == list(of_cell["file"])


def test_it_works_in_a_viewer_that_keeps_the_address_to_itself(browser, run):
    forbidding = "history.replaceState = () => { throw new DOMException('', 'SecurityError') }"
    added = browser.call("Page.addScriptToEvaluateOnNewDocument", source=forbidding)
    try:
        browser.open(run.report_html)
        browser.choose("[name='cell.method']", METHODS[0])
        browser.click("#gallery-images button")
        assert text(browser, "#gallery-place") == "1 of 48"
        browser.press("Escape")
        assert browser.run("document.querySelector('dialog').open") is False
        assert browser.complaints() == []
    finally:
        browser.call("Page.removeScriptToEvaluateOnNewDocument", **added)


def test_without_script_there_is_a_list(browser, run):
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(run.report_html)
        # The protocol's own evaluation goes on.
        count = "document.querySelectorAll('#gallery-images li img').length"
        assert browser.run(count) == 48
        assert browser.run("document.querySelector('#gallery-filters').checkVisibility()") is False
        assert "plain list of the first 48" in text(browser, "#gallery noscript")
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


def test_print_has_no_controls(page):
    page.call("Emulation.setEmulatedMedia", media="print")
    try:
        for selector in ("#gallery-filters", "#gallery-more", "#gallery-count"):
            assert page.run(f"document.querySelector('{selector}').checkVisibility()") is False
        assert len(shown(page)) == 96
    finally:
        page.call("Emulation.setEmulatedMedia", media="")


def test_the_browser_stops_a_script_that_would_get_in_all_the_same(browser, run):
    browser.open(run.report_html)
    attack = "innerHTML = '<img src=x onerror=\"window.pwned=1\">'"
    browser.run(f"document.getElementById('gallery').{attack}")
    browser.run("new Promise((done) => setTimeout(done, 100))")
    assert browser.run("typeof window.pwned") == "undefined"
    assert any("Content Security Policy" in complaint for complaint in browser.complaints())


def test_no_image_is_wider_than_a_small_screen(browser, run):
    size = {"width": 360, "height": 640, "deviceScaleFactor": 1, "mobile": True}
    browser.call("Emulation.setDeviceMetricsOverride", **size)
    try:
        browser.open(run.report_html)
        assert browser.run("document.getElementById('gallery').scrollWidth <= 360") is True
        browser.click("#gallery-images button")
        assert browser.run("document.querySelector('dialog').scrollWidth <= 360") is True
    finally:
        browser.call("Emulation.clearDeviceMetricsOverride")
