"""The page: every number leads to its record, nothing is asked of a network, and equal records give equal bytes."""

import json
import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image
from records import kept, made_analysis, made_artefact, made_curves, made_record, made_samples, rates

from fsr_lab.core.record import EvaluationRecord, Finding
from fsr_lab.report.artefact_page import write_artefact
from fsr_lab.report.columns import columns_of, value
from fsr_lab.report.folder_page import write_folder

VOID = {"meta", "link", "img", "br", "hr"}


class Document(HTMLParser):
    """What a page holds: its elements with their attributes, and the rows of its tables cell by cell."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.tables, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr" and self.tables:
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append({"text": "", "links": []})
        elif tag == "a" and "td" in self.open:
            self.tables[-1][-1][-1]["links"].append({"href": dict(attrs)["href"], "text": ""})

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, "elements must close in order"

    def handle_data(self, data):
        if self.tables and {"td", "th"} & set(self.open):
            cell = self.tables[-1][-1][-1]
            cell["text"] += data
            if "a" in self.open and cell["links"]:
                cell["links"][-1]["text"] += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return an artefact with two methods in two seeds, the best weights, curves, images and analyses, and its page."""
    folder = made_artefact(tmp_path_factory.mktemp("experiments") / "table0")
    for name, experiment, worst in (("AT", "table0/at", 40), ("AT+FSR", "table0/at_fsr", 60)):
        for seed in (0, 1):
            run = kept(folder, "cpu", experiment, seed)
            record = made_record(rates(80, worst + seed), name=f"{name} (last)", seed=seed)
            record.save(run / "records", "last")
            made_record(rates(81, worst + 3), name=f"{name} (best)", seed=seed).save(run / "records", "best")
            made_curves(run)
    made_samples(run / "samples.npz")
    text = (folder / "manifest.yaml").read_text()
    kinds = ("attention", "mask_maps", "feature_distance", "knn")
    lines = [f"  - {{name: AT+FSR, experiment: table0/at_fsr, kind: {kind}}}" for kind in kinds]
    (folder / "manifest.yaml").write_text("\n".join([text, "analyses:", *lines, ""]))
    for kind in kinds:
        made_analysis(kind).save(run / "analyses", kind)
    assert write_artefact(folder)[2] == []
    return folder


@pytest.fixture(scope="module")
def document(whole):
    return Document((whole / "page.html").read_text())


@pytest.fixture
def folder(tmp_path):
    """Return an artefact of two networks of which there is nothing to plot, to be changed."""
    folder = made_artefact(tmp_path / "experiments" / "table0")
    for name, experiment, worst in (("AT", "table0/at", 40), ("AT+FSR", "table0/at_fsr", 60)):
        record = made_record(rates(80, worst), name=f"{name} (last)", settings={})
        record.save(kept(folder, "cpu", experiment) / "records", "last")
    return folder


def test_every_number_of_ours_is_what_its_record_says(whole, document):
    (grid,) = [table for table in document.tables if [cell["text"].strip() for cell in table[0]][1:] == [
        "Natural", "PGD-20", "Ensemble", "AutoAttack",
    ]]  # fmt: skip
    headings = [cell["text"].strip() for cell in grid[0]]
    seen = 0
    for name, *cells in grid[1:]:
        checkpoint = "best" if "best" in name["text"] else "last"
        for heading, cell in zip(headings[1:], cells, strict=True):
            shown = []
            for link in cell["links"]:
                if link["href"].startswith("#note-"):
                    continue
                record = EvaluationRecord.load(whole / unquote(link["href"]))
                assert record.name == f"{name['text'].split()[0]} ({checkpoint})"
                (column,) = [column for column in columns_of(record) if column.heading == heading]
                percent = value(record, column).percent
                assert link["text"] == f"{percent:.1f}"
                shown.append(percent)
                seen += 1
            if shown:
                assert cell["text"].strip().startswith(f"{sum(shown) / len(shown):.2f}")
    assert seen == 4 * 3 * 2  # rows, measured columns, seeds


def test_the_list_of_every_number_leads_to_each_record(whole, document):
    (listed,) = [table for table in document.tables if table[0][-1]["text"] == "record"]
    assert len(listed) == 1 + 24
    for *_, row, column, seed, withstood, n, percent, _, place in listed[1:]:
        (link,) = place["links"]
        record = EvaluationRecord.load(whole / unquote(link["href"]))
        (own,) = [each for each in columns_of(record) if each.heading == column["text"]]
        found = value(record, own)
        assert (record.name, str(record.provenance.seed)) == (row["text"], seed["text"])
        assert (str(found.correct), str(found.n)) == (withstood["text"], n["text"])
        assert f"{found.percent:.2f}" == percent["text"]


def test_it_asks_nothing_of_a_network(document):
    assert {name for name, _ in document.elements} & {"iframe", "object", "embed", "base"} == set()
    assert all(each["src"].startswith("data:image/png;base64,") for each in document.all("img"))
    assert [each for each in document.all("script") if each] == []
    assert [each["href"] for each in document.all("link")] == ["data:,"]
    hrefs = [each.get("href", each.get("xlink:href", "#")) for _, each in document.elements]
    assert [href for href in hrefs if href.startswith(("http", "//"))] == []


def test_styles_ask_nothing_of_a_network(whole):
    text = (whole / "page.html").read_text()
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert "--series-1" in style
    assert "url(" not in style
    assert "@import" not in style


def test_pictures_say_what_they_show(document):
    assert len(document.all("img")) == 3 * 3 + 6 * 4  # of the run's images, and of the maps
    assert all(each["alt"].strip() for each in document.all("img"))
    plots = document.all("svg")
    assert len(plots) >= 4
    assert all(each["role"] == "img" and each["aria-label"].strip() for each in plots)


def test_ids_stand_once_and_links_within_the_page_lead_somewhere(document):
    ids = [each["id"] for _, each in document.elements if "id" in each]
    own = {each["href"][1:] for each in document.all("a") if each["href"].startswith("#")}
    assert own <= set(ids)
    assert {"note-1", "accuracy", "provenance"} <= own
    assert len(ids) == len(set(ids))


OUTPUTS = ("page.html", "report.md", "table.tex", "table.csv")


def test_equal_records_give_equal_bytes_wherever_they_lie(folder):
    write_artefact(folder)
    first = {name: (folder / name).read_bytes() for name in OUTPUTS}
    elsewhere = Path(shutil.copytree(folder, folder.parent.parent / "moved" / "table0"))
    write_artefact(elsewhere)
    assert {name: (elsewhere / name).read_bytes() for name in OUTPUTS} == first


@pytest.mark.slow
def test_another_process_makes_the_same_bytes(whole, tmp_path):
    elsewhere = Path(shutil.copytree(whole, tmp_path / "table0"))
    code = "import sys; from pathlib import Path; from fsr_lab.report import artefact_page as page; "
    code += "page.write_artefact(Path(sys.argv[1]))"
    # whose sets and dictionaries have another order
    subprocess.run([sys.executable, "-c", code, elsewhere], check=True, env=os.environ | {"PYTHONHASHSEED": "7"})
    for name in OUTPUTS:
        assert (elsewhere / name).read_bytes() == (whole / name).read_bytes()


def test_names_are_shown_as_text(folder):
    record = made_record(rates(80, 40), name="<script>alert(1)</script> (last)", settings={})
    record.save(kept(folder, "cpu", "table0/at") / "records", "last")
    text = write_artefact(folder)[1].read_text()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_a_failed_check_is_seen_at_the_number(folder):
    finding = Finding("eps-ladder", "fail", 1.0, "accuracy rises with the radius", ("pgd20",))
    record = made_record(rates(80, 40), settings={}, findings=[finding])
    record.save(kept(folder, "cpu", "table0/at") / "records", "last")
    text = write_artefact(folder)[1].read_text()
    assert ">40.00†</a>" in text
    assert "the number is not to be believed" in text
    assert 'class="verdict masked">masked<' in text


def test_what_was_left_out_stands_on_the_page(folder):
    run = kept(folder, "cpu", "table0/at")
    made_record(rates(80, 40)).save(run / "records", "best")
    (run / "records" / "best.npz").write_bytes(b"no record")
    (run / "samples.npz").write_bytes(b"no images")
    _, path, problems = write_artefact(folder)
    assert len(problems) == 2
    text = path.read_text()
    left_out = text.partition('id="left-out"')[2].partition("</section>")[0]
    assert "best.json is not a whole evaluation record" in left_out
    assert "holds no images that can be read" in left_out
    assert "## Left out" in (folder / "report.md").read_text()


def test_an_analysis_that_lacks_its_arrays_is_left_out(folder):
    with (folder / "manifest.yaml").open("a") as stream:
        stream.write("analyses:\n  - {name: AT+FSR, experiment: table0/at_fsr, kind: mask_maps}\n")
    path = made_analysis("mask_maps").save(kept(folder, "cpu", "table0/at_fsr") / "analyses", "mask_maps")
    content = json.loads(path.read_text())
    del content["settings"]["edges"]
    path.write_text(json.dumps(content))
    (said,) = write_artefact(folder)[2]
    assert "mask_maps" in said
    assert "analyse again" in said


def test_a_folder_of_runs_has_a_page_too(folder, tmp_path):
    place = Path(shutil.copytree(folder / "records", tmp_path / "runs"))
    (place / "notes.md").write_text("What a *person* says: <b>no markup</b>.\n")
    report, path = write_folder(place)
    text = path.read_text()
    assert report.problems == ()
    assert "<em>person</em>" in text
    assert "&lt;b&gt;no markup" in text
    assert ">60.00</a>" in text
    assert "## Methods" in report.path.read_text()
    assert "\\toprule" in (place / "table.tex").read_text()
    Document(text)


def test_a_picture_whose_source_was_not_kept_is_on_the_page(tmp_path):
    made_record(rates(80, 40), settings={}).save(tmp_path / "run" / "records", "last")
    Image.new("RGB", (4, 4), "red").save(tmp_path / "run" / "curves.png")
    shown = Document(write_folder(tmp_path)[1].read_text()).all("img")
    assert [each["alt"] for each in shown] == ["run: losses and accuracies over training steps"]
    made_curves(tmp_path / "run")
    assert Document(write_folder(tmp_path)[1].read_text()).all("img") == []


def test_plots_tell_their_numbers_in_words(document):
    said = " ".join(each["aria-label"] for each in document.all("svg"))
    # made_curves: the best validation is the second of three epochs
    assert "AT, seed 0: best 40.0 % at step 19, last 30.0 % at 29." in said
    # rates(80, 40): natural 80, then the same 40 after 20 and 100 steps
    assert "AT, seed 0: 80.0 % after 0, 40.0 % after 20, 40.0 % after 100." in said


def test_one_network_at_several_radii_is_a_curve(tmp_path):
    for eps, worst in (("4/255", 60), ("8/255", 40), ("16/255", 10)):
        record = made_record(rates(80, worst), eps=eps, weights="the same")
        record.save(tmp_path / eps.partition("/")[0] / "records", "evaluation")
    _, path = write_folder(tmp_path)
    said = " ".join(each["aria-label"] for each in Document(path.read_text()).all("svg"))
    assert "AT under Ensemble: 80.0 % at 0/255, 60.0 % at 4/255, 40.0 % at 8/255, 10.0 % at 16/255." in said


def test_what_a_sweep_varied_is_a_map(tmp_path):
    for place, (sep, rec) in enumerate([(0, 1), (1, 1), (0, 5), (1, 5)]):
        name = f"defense.module.lambda_rec={rec},defense.module.lambda_sep={sep},seed=0"
        made_record(rates(80, 10 * place)).save(tmp_path / name / "records", "last")
    _, path = write_folder(tmp_path)
    said = " ".join(each["aria-label"] for each in Document(path.read_text()).all("svg"))
    assert "Ensemble accuracy over lambda_rec and lambda_sep: 0.0 % at 1 and 0, 10.0 % at 1 and 1, " in said
    assert "20.0 % at 5 and 0, 30.0 % at 5 and 1." in said
