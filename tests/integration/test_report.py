"""fsr report from the command line: artefacts, runs, several of them, and what it says of a wrong place."""

import json
from pathlib import Path

import pytest
from records import EXPECTED, MANIFEST, kept, made_artefact, made_record, rates


@pytest.fixture
def artefact(tmp_path):
    folder = made_artefact(tmp_path / "experiments" / "table0")
    made_record(rates(80, 40), settings={}).save(kept(folder, "cpu", "table0/at") / "records", "last")
    return folder


def test_an_artefact_gets_a_page_a_text_and_two_tables(fsr, artefact):
    outcome = fsr("report", artefact)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines()[-1] == f"page: {artefact / 'page.html'}"
    assert "paper 50.2" in outcome.out
    made = {path.name for path in artefact.iterdir()}
    assert made == {"manifest.yaml", "expected.json", "records", "page.html", "report.md", "table.tex", "table.csv"}


def test_a_list_in_a_rows_name_is_printed(fsr, tmp_path):
    text = MANIFEST.replace("name: AT,", 'name: "at [layer3,layer4]",')
    assert "│ at [layer3,layer4] (last)" in fsr("report", made_artefact(tmp_path / "table0", text)).out


def test_runs_may_be_laid_out_elsewhere(fsr, artefact, tmp_path):
    record = made_record(rates(66, 33), settings={})
    record.save(tmp_path / "runs" / "smoke" / "table0" / "at" / "seed=0" / "records", "last")
    outcome = fsr("report", artefact, f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'there'}")
    # a record of the digits' scale in the wrong radius: told, and the page is there
    assert "it is of linf 8/255, the table of linf 0.12" in outcome.refusal()
    assert (tmp_path / "there" / "page.html").is_file()
    assert not (artefact / "page.html").exists()


def test_a_damaged_record_leaves_the_rest(fsr, artefact):
    run = kept(artefact, "cpu", "table0/at")
    made_record(rates(80, 41)).save(run / "records", "best")
    (run / "records" / "best.json").write_text("{")
    line = fsr("report", artefact).refusal()
    assert "best.json is not a whole evaluation record" in line
    assert "evaluate again" in line
    assert ">40.00</a>" in (artefact / "page.html").read_text()


def test_several_runs_are_one_page(fsr, tmp_path):
    for name, worst in (("AT", 40), ("AT+FSR", 60)):
        made_record(rates(80, worst), name=f"{name} (last)", settings={}).save(tmp_path / name / "records", "last")
    outcome = fsr("report", tmp_path / "AT", tmp_path / "AT+FSR", f"out={tmp_path / 'both'}")
    assert outcome.code == 0, outcome.err
    page = (tmp_path / "both" / "page.html").read_text()
    assert 'href="../AT%2BFSR/records/last.json"' in page
    assert 'class="ours best" href="../AT%2BFSR' in page
    assert not list((tmp_path / "AT").glob("*.html"))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"eps": "4/255"}, "are of another threat (['linf 8/255'] and ['linf 4/255']); evaluate both alike"),
        ({"first": 50}, "are of other test images; evaluate both alike"),
        ({"data": "other"}, "are of other test images; evaluate both alike"),
    ],
)
def test_places_that_cannot_be_compared_are_refused(fsr, tmp_path, other, said):
    made_record(rates(80, 40)).save(tmp_path / "one" / "records", "last")
    made_record(rates(80, 40), name="AT+FSR (last)", **other).save(tmp_path / "two" / "records", "last")
    assert said in fsr("report", tmp_path / "one", tmp_path / "two", f"out={tmp_path / 'both'}").refusal()


def test_one_network_at_two_radii_may_be(fsr, tmp_path):
    for eps in ("4/255", "8/255"):
        record = made_record(rates(80, 40), eps=eps, weights="w", settings={})
        record.save(tmp_path / eps.partition("/")[0] / "records", "last")
    assert fsr("report", tmp_path / "4", tmp_path / "8", f"out={tmp_path / 'both'}").code == 0


def test_wrong_places_get_one_line(fsr, artefact, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no folder nowhere; give a run, a sweep or an artefact" in fsr("report", "nowhere").refusal()
    assert "no evaluation record below" in fsr("report", "empty").refusal()
    assert "2 places needs a folder of its own; give out=FOLDER" in fsr("report", "empty", artefact).refusal()
    assert "has no manifest.yaml" in fsr("report", "empty", "runs=.").refusal()
    assert "no folder nowhere; give runs=FOLDER" in fsr("report", artefact, "runs=nowhere").refusal()
    assert "is a file" in fsr("report", artefact, f"out={artefact / 'expected.json'}").refusal()
    (artefact / "expected.json").unlink()
    assert "expected.json, the paper's numbers" in fsr("report", artefact).refusal()
    made_artefact(tmp_path / "damaged", MANIFEST, EXPECTED)
    (tmp_path / "damaged" / "expected.json").write_text(json.dumps({"rows": 1}))
    assert "is not a readable table of the paper's numbers" in fsr("report", "damaged").refusal()


def test_a_folder_called_runs_is_a_folder(fsr, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    asked = []
    monkeypatch.setattr("fsr_lab.cli.report", lambda session, places, **options: asked.append((places, options)))
    assert fsr("report", "runs", "out=page").code == 0
    assert asked == [([Path("runs")], {"out": Path("page")})]
