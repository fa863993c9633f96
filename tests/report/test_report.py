"""The drawn report: its files, that both formats say the same, and that it is one file."""

import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image
from pypdf import PdfReader
from report.readers import content_of, page, pdf_pages, pdf_text, svg_texts, write_undrawn
from report.synthetic_run import make_tables, two_methods

from autolora_eval._errors import UsageError
from autolora_eval.report import read_report, write_report
from autolora_eval.report.content import write_page_images
from autolora_eval.runs.folder import RunFolder, open_run

pytestmark = pytest.mark.e2e


def squeezed(text: str) -> str:
    """Return text without white space: lines break in other places in PDF and HTML."""
    return "".join(text.replace("\u200b", "").split())


def test_every_file_is_written_and_opens(judged):
    names = {path.name for path in judged.figures.iterdir()}
    grids = {"grid_extremes.png", "grid_prompts_seed0.png"}
    grids |= {"grid_seeds_prompt0.png", "grid_seeds_prompt1.png"}
    assert names >= grids | {"diversity_vs_scores.png", "diversity_vs_scores.svg"}
    with Image.open(judged.figures / "diversity_vs_scores.png") as image:
        image.load()
        assert image.format == "PNG"
        assert round(image.info["dpi"][0]) == 200
    root = ElementTree.parse(judged.figures / "diversity_vs_scores.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(PdfReader(judged.report_pdf).pages) in range(3, 10)
    assert page(judged).open == []
    assert not [path.name for path in judged.path.rglob(".partial-*")]


@pytest.mark.parametrize("shape", ["judged", "unjudged", "sweep"])
def test_pdf_and_html_say_all_that_the_content_says(shape, request):
    folder: RunFolder = request.getfixturevalue(shape)
    content = content_of(folder)
    pdf, html = squeezed(pdf_text(folder)), squeezed(page(folder).text)
    first = content.first
    parts = [part for s in content.sections for part in s.parts if part.kind in ("text", "table")]
    tables = [first.table, *(part.value for part in parts if part.kind == "table")]
    texts = [part.value for part in parts if part.kind == "text"]
    texts += [content.compared, first.cost, *first.certainty, *first.caveats]
    texts += [text for f in (*first.winners, *first.findings) for text in (f.lead, *f.sentences)]
    texts += [table.caption for table in tables]
    cells = [c for t in tables for g in t.groups for row in g.rows for c in row.cells]
    texts += [text for c in cells for text in (c.text, c.interval, *c.details)]
    texts += [f"{c.published} ({c.difference})" for c in cells if c.published]
    for text in texts:
        assert squeezed(text) in pdf, text
        assert squeezed(text) in html, text


def test_a_run_without_a_judge_reports_diversity_alone(unjudged):
    for text in (pdf_text(unjudged), page(unjudged).text):
        assert "Only diversity was measured, without a judge." in text
        assert "0.171" in text
        assert "PC" not in text
    labels = svg_texts(unjudged)
    assert [label for label in labels if "LoRA" in label] == [
        *("LoRA", "AutoLoRA", "LoRA+CFG", "AutoLoRA+CFG")
    ]


def test_methods_and_manifest_tell_where_the_numbers_come_from(judged):
    for text in (pdf_text(judged), page(judged).text):
        compact = text.replace(" ", "")
        for expected in (
            "lora_scale=1.0,num_inference_steps=20,autolora_scale=1.5,guidance_scale=5.0,"
            "base_guidance_scale=5.0;NFEperimage:80",
            "schedulerclass=EulerDiscreteScheduler,a=1,b=2,c=3,d=4,e=5",
            *("d" * 64, "e" * 64, "size64×64", "3seeds,0to2", "12.3s,24done,3reused"),
            "synthetic.yaml",
        ):
            assert expected in compact
        assert "someone" not in compact
    assert "published" not in page(judged).text


def test_a_folder_that_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="not a run folder"):
        write_report(RunFolder(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_another_process_writes_the_same_bytes_and_loads_no_model_library(tmp_path, judged):
    again = make_tables().write(tmp_path / "run")
    code = (
        "import sys; from pathlib import Path\n"
        "from autolora_eval.report import write_report\n"
        "from autolora_eval.runs.folder import RunFolder\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"write_report(RunFolder(Path({str(again.path)!r})))\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'matplotlib.pyplot'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    files = ["report.pdf", "report.html", *(f"figures/{f.name}" for f in judged.figures.iterdir())]
    assert len(files) > 10
    for file in files:
        assert (judged.path / file).read_bytes() == (again.path / file).read_bytes(), file


def test_the_html_requests_no_other_file(judged):
    found = page(judged)
    policy = found.all("meta")[1]
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert str(policy["content"]).startswith("default-src 'none'; img-src data:;")
    assert {tag for tag, _ in found.tags} & {"script", "link", "iframe", "object"} == set()
    for tag, attributes in found.tags:
        for name in ("src", "href", "xlink:href", "data", "action", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), (tag, name, value)
    assert "@import" not in judged.report_html.read_text(encoding="utf-8")


def test_the_images_of_the_grids_are_those_of_the_run(judged):
    images = page(judged).all("img")
    # Methods by seed for two prompts; prompts by method; two prompts of the baseline and the best.
    assert len(images) == 4 * 3 * 2 + 2 * 4 + 2 * 2 * 3
    assert images[0]["title"] == "seed 0: PC 3.5, SA 4.5"
    embedded = [image for p in PdfReader(judged.report_pdf).pages for image in p.images]
    # A page that shows an image twice holds it once.
    assert len({image.data for image in embedded}) == len({image["src"] for image in images})
    file = open_run(judged.path).scores["file"][0]
    with Image.open(judged.path / file) as original:
        expected = np.asarray(original)
    first = np.asarray(embedded[0].image.convert("RGB"))
    factor = len(first) // len(expected)
    assert np.array_equal(first, expected.repeat(factor, 0).repeat(factor, 1))


def test_every_page_but_the_last_is_at_least_half_full(judged, tmp_path):
    write_page_images(read_report(judged), tmp_path)
    pages = sorted(tmp_path.glob("*.png"), key=lambda path: int(path.stem.removeprefix("report-")))
    for path in pages[:-1]:
        with Image.open(path) as image:
            grey = np.asarray(image.convert("L"))
        body = grey[: int(0.93 * len(grey))]  # without the footer
        last = np.flatnonzero(body.min(axis=1) < 200).max()
        assert last > 0.5 * len(grey), path.name


def test_a_sweep_of_48_cells_is_laid_out_as_the_papers_table_on_few_pages(sweep):
    table = open_run(sweep.path).table.set_index(["lora_scale", "method"])
    methods = ("LoRA", "AutoLoRA", "LoRA+CFG", "AutoLoRA+CFG")
    for text in (" ".join(pdf_pages(sweep)[1:]), page(sweep).text):
        for scale in (0.2, 0.7, 1.3):
            expected = [f"{scale:g}"]
            for method in methods:
                row = table.loc[scale, method]
                difference = f"{row['cps'] - row['cps_published']:+.3f}".replace("-", "−")
                difference = "0.000" if float(difference.replace("−", "-")) == 0.0 else difference
                expected.append(f"{row['cps']:.3f}")
                expected.append(f"[{row['cps_low']:.3f}, {row['cps_high']:.3f}]")
                expected.append(f"{row['cps_published']:.3f} ({difference})")
            assert " ".join(expected) in text
    assert len(pdf_pages(sweep)) <= 12


@pytest.mark.parametrize("name", ["disney_princess_autolora_scale_miniature", "M" * 80])
def test_the_benchmarks_name_is_one_word_if_there_is_room(tmp_path, name):
    tables = two_methods(n_seeds=1)
    tables.manifest["benchmark"]["name"] = name
    folder = write_undrawn(tables.write(tmp_path / "run"))
    text = PdfReader(folder.report_pdf).pages[0].extract_text()
    assert text.replace("\u200b", "").replace("\n", "").count(name) == 2, "title and footer"
    assert text.count(name) == (2 if "_" in name else 0)
