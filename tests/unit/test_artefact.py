"""An artefact's tables: which record a number is of, what is named as missing, what is left out and why."""

import csv
import io
import json
import shutil
from decimal import Decimal

import numpy as np
import pytest
from records import EXPECTED, MANIFEST, kept, made_analysis, made_artefact, made_record, rates

from fsr_lab.report.artefact import read_artefact
from fsr_lab.report.grid_text import grid_markdown, grids_csv
from fsr_lab.report.latex import grids_latex


@pytest.fixture
def folder(tmp_path):
    """Return an artefact with AT in two seeds and AT+FSR in one, at scale cpu, its best weights beside the last."""
    folder = made_artefact(tmp_path / "experiments" / "table0")
    for seed, worst in ((0, 40), (1, 44)):
        made_record(rates(80, worst), seed=seed).save(kept(folder, "cpu", "table0/at", seed) / "records", "last")
    run = kept(folder, "cpu", "table0/at_fsr")
    made_record(rates(70, 60), name="AT+FSR (last)").save(run / "records", "last")
    made_record(rates(75, 65), name="AT+FSR (best)").save(run / "records", "best")
    return folder


def cells(grid, name, checkpoint="last"):
    (line,) = [line for line in grid.lines if (line.name, line.checkpoint) == (name, checkpoint)]
    return dict(zip(grid.headings, line.cells, strict=True))


def test_numbers_are_means_over_seeds_beside_the_papers(folder):
    (grid,) = read_artefact(folder).grids
    assert (grid.scale, grid.threat) == ("cpu", "linf 8/255")
    at = cells(grid, "AT")
    assert at["PGD-20"].mean == 42
    assert at["PGD-20"].sd == pytest.approx(np.std([40, 44], ddof=1))
    assert at["PGD-20"].text() == "42.00 ± 2.83"
    assert at["PGD-20"].difference == Decimal("-8.2")
    assert at["Ensemble"].difference == Decimal("-3")  # to the paper's decimals
    assert at["Natural"].paper.where == "Table 0, a network, AT, Natural"
    assert [number.seed for number in at["Natural"].numbers] == [0, 1]


def test_best_weights_stand_beside_the_last_without_the_papers_number(folder):
    (grid,) = read_artefact(folder).grids
    assert [line.title for line in grid.lines] == ["AT (last)", "AT+FSR (last)", "AT+FSR (best)"]
    last, best = cells(grid, "AT+FSR"), cells(grid, "AT+FSR", "best")
    assert (last["Ensemble"].mean, best["Ensemble"].mean) == (60, 65)
    assert last["Ensemble"].paper.value == Decimal("48")
    assert best["Ensemble"].paper is None


def test_a_number_that_the_paper_does_not_print_is_ours_alone(folder):
    (grid,) = read_artefact(folder).grids
    assert cells(grid, "AT+FSR")["PGD-20"].paper is None
    assert cells(grid, "AT+FSR")["PGD-20"].mean == 60


def test_footnotes_stand_where_they_belong(folder):
    (grid,) = read_artefact(folder).grids
    places = {(line.title, heading) for line in grid.lines for heading, cell in
              zip(grid.headings, line.cells, strict=True) if cell.notes}  # fmt: skip
    assert places == {("AT (last)", "PGD-20")}


def test_what_is_missing_is_named(folder):
    shutil.rmtree(kept(folder, "cpu", "table0/at_fsr"))
    (grid,) = read_artefact(folder).grids
    assert grid.missing == [
        "AT (last): AutoAttack (table0/at at scale cpu)", "AT+FSR (last) (table0/at_fsr at scale cpu)",
    ]  # fmt: skip
    assert cells(grid, "AT+FSR")["Natural"].numbers == ()


def test_without_records_the_papers_numbers_stand_alone(tmp_path):
    found = read_artefact(made_artefact(tmp_path / "table0"))
    (grid,) = found.grids
    assert (grid.scale, grid.is_measured, grid.has_paper, found.problems) == ("paper", False, True, ())
    assert len(grid.missing) == 2


def test_each_scale_has_a_table(folder):
    record = made_record(rates(90, 70), eps="0.12")
    record.save(kept(folder, "smoke", "table0/at") / "records", "last")
    assert [grid.scale for grid in read_artefact(folder).grids] == ["smoke", "cpu"]


def test_a_column_may_come_from_another_record_of_the_network(folder):
    chains = {"autoattack": ("apgd_ce",)}
    record = made_record({"clean": 80, "apgd_ce": 35}, n=90, chains=chains)
    record.save(kept(folder, "cpu_more", "table0/at") / "records", "evaluation")
    found = read_artefact(folder)
    at = cells(found.grids[0], "AT")
    (number,) = at["AutoAttack"].numbers
    assert number.value.correct == 35
    assert number.path.name == "evaluation.json"
    # of the two records that say Natural of seed 0 the one of more images counts
    assert [number.value.n for number in at["Natural"].numbers] == [100, 100]
    assert found.problems == ()


def test_runs_elsewhere_may_be_laid_out_instead(folder, tmp_path):
    record = made_record(rates(50, 20))
    record.save(tmp_path / "runs" / "paper" / "table0" / "at" / "seed=3" / "records", "last")
    (grid,) = read_artefact(folder, tmp_path / "runs").grids
    assert grid.scale == "paper"
    (number,) = cells(grid, "AT")["Natural"].numbers
    assert (number.seed, number.value.correct) == (3, 50)


def test_records_of_a_shared_artefact_serve_too(folder):
    text = MANIFEST.replace("Table 0", "Table 9").replace("runs:", "shares: [table0]\nruns:")
    other = made_artefact(folder.parent / "table9", text)
    assert cells(read_artefact(other).grids[0], "AT")["Natural"].mean == 80


def problem(folder):
    found = read_artefact(folder)
    (said,) = found.problems
    assert cells(found.grids[0], "AT")["PGD-20"].mean == 42, "the rest must stand"
    return said


def test_another_radius_is_left_out_and_told(folder):
    made_record(rates(70, 60), name="AT+FSR (last)", eps="4/255").save(
        kept(folder, "cpu", "table0/at_fsr", seed=1) / "records", "last"
    )
    said = problem(folder)
    assert "seed=1/records/last.json is left out: it is of linf 4/255, the table of linf 8/255; evaluate again" in said


def test_other_images_are_left_out_and_told(folder):
    made_record(rates(70, 60), name="AT+FSR (last)", data="other").save(
        kept(folder, "cpu", "table0/at_fsr", seed=1) / "records", "last"
    )
    assert "its test images are others than the table's; evaluate all rows on the same" in problem(folder)


def test_fewer_images_are_shown_and_not_compared(folder):
    run = kept(folder, "cpu", "table0/at_fsr")
    made_record(rates(35, 30), name="AT+FSR (last)", n=50).save(run / "records", "last")
    found = read_artefact(folder)
    (said,) = found.problems
    assert "AT (last) and AT+FSR (last), Natural, PGD-20, Ensemble: these records are not of the same samples" in said
    assert "(100 and 50)" in said
    assert cells(found.grids[0], "AT+FSR")["Natural"].mean == 70
    assert found.grids[0].tests == ()


def test_an_attack_of_other_settings_is_not_compared(folder):
    run = kept(folder, "cpu", "table0/at_fsr")
    shutil.rmtree(run)
    settings = {"pgd20": "PGD(steps=20, relative_step=0.5)"}
    made_record(rates(70, 60), name="AT+FSR (last)", settings=settings).save(run / "records", "last")
    said = read_artefact(folder).problems
    assert any("PGD-20, Ensemble: the attack has other settings in the two" in each for each in said)


def test_a_run_that_the_manifest_does_not_name_is_told(folder):
    made_record(rates(70, 60)).save(kept(folder, "cpu", "table0/mart") / "records", "last")
    assert "table0/mart/seed=0 is of no row of" in problem(folder)


def test_other_settings_of_a_run_are_told(folder):
    run = kept(folder, "cpu", "table0/at").with_name("seed=0,trainer.max_epochs=9")
    made_record(rates(99, 98)).save(run / "records", "last")
    assert "the manifest has no such run of table0/at (settings {'trainer.max_epochs': '9'})" in problem(folder)


def test_a_name_without_a_checkpoint_is_told(folder):
    made_record(rates(99, 98), name="mine").save(kept(folder, "cpu", "table0/at", seed=2) / "records", "evaluation")
    assert "its name tells no checkpoint; evaluate without label=" in problem(folder)


@pytest.mark.parametrize("damage", ["truncated", "foreign", "no json", "no npz"])
def test_a_damaged_or_foreign_record_leaves_the_rest(folder, damage):
    run = kept(folder, "cpu", "table0/at_fsr")
    path = run / "records" / "best.json"
    if damage == "truncated":
        path.with_suffix(".npz").write_bytes(path.with_suffix(".npz").read_bytes()[:100])
    elif damage == "foreign":
        path.write_text('{"what": "is this?"}')
    else:
        path.with_suffix(f".{damage[3:]}").unlink()
    said = problem(folder)
    assert "best" in said
    assert "evaluate again" in said


def test_without_the_papers_numbers_it_says_where_they_are(tmp_path):
    folder = made_artefact(tmp_path / "table0", expected=None)
    with pytest.raises(ValueError, match=r"no .*expected.json, the paper's numbers .*; restore it from git"):
        read_artefact(folder)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("title:", "titel:", "is not a readable manifest"),
        ("panels:", "panels: {", "is not a readable manifest"),
        ("cpu:", "gpu:", "no scale named 'gpu'"),
        ("expected: at}", "expected: art}", "expected.json has no row 'art'"),
    ],
)
def test_a_wrong_manifest_is_refused(tmp_path, old, new, said):
    folder = made_artefact(tmp_path / "table0", MANIFEST.replace(old, new, 1))
    with pytest.raises(ValueError, match=said):
        read_artefact(folder)


def test_numbers_of_the_paper_are_as_printed(tmp_path):
    content = json.loads(json.dumps(EXPECTED))
    content["rows"]["at"]["values"]["Natural"] = 80.10
    folder = made_artefact(tmp_path / "table0", expected=content)
    with pytest.raises(ValueError, match="as it is printed"):
        read_artefact(folder)


NEAREST = """
  - title: nearest neighbours
    columns: {5-NN: null, 20-NN: null}
    groups:
      - - {name: f⁺, experiment: table0/at_fsr, nearest: {part: f_plus, bank: train, pooling: pooled, gamma: 0.1}}
        - {name: f⁻, experiment: table0/at_fsr, nearest: {part: f_minus, bank: train, pooling: pooled, gamma: 0.1}}
"""


def test_nearest_neighbours_are_counted_from_the_analysis(tmp_path):
    folder = made_artefact(tmp_path / "table0", MANIFEST.replace("notes:", f"{NEAREST.strip(chr(10))}\nnotes:", 1))
    made_analysis("knn").save(kept(folder, "cpu", "table0/at_fsr") / "analyses", "knn")
    grid = read_artefact(folder).grids[1]
    five, twenty = grid.lines[0].cells
    assert (five.numbers[0].value.correct, twenty.numbers[0].value.correct, twenty.numbers[0].value.n) == (6, 2, 6)
    assert five.numbers[0].path.name == "knn.json"
    assert not grid.lines[1].is_measured


def test_text_formats_have_every_number_with_its_record(folder):
    (grid,) = read_artefact(folder).grids
    text = grid_markdown(grid, folder)
    assert "| AT (last) | **80.00 ± 0.00** ([80.00](records/cpu/table0/at/seed=0/records/last.json), " in text
    assert "**[60.00](records/cpu/table0/at_fsr/seed=0/records/last.json)** [50.2, 69.1] |" in text
    assert "paper 50.2<sup>1</sup> (−8.2)" in text
    rows = list(csv.DictReader(io.StringIO(grids_csv([grid], folder))))
    assert len(rows) == (3 * 2 + 1) + (3 + 1) + (3 + 1)  # of each row three columns are measured, AT's in two seeds
    assert rows[0] == {
        "table": "a network on some images", "scale": "cpu", "threat": "linf 8/255", "row": "AT", "checkpoint": "last",
        "column": "Natural", "seed": "0", "correct": "80", "n": "100", "percent": "80.0000", "low": "71.1171",
        "high": "86.6633", "marks": "", "mean": "80.0000", "sd": "0.0000", "paper": "80.10", "difference": "-0.10",
        "source": "Table 0, a network, AT, Natural", "bold": "bold",
        "record": "records/cpu/table0/at/seed=0/records/last.json",
    }  # fmt: skip


def test_latex_has_our_numbers_over_the_papers(folder):
    found = read_artefact(folder)
    text = grids_latex(found.grids, [note.text for note in found.manifest.notes])
    for line in (
        r" & Natural & PGD-20 & Ensemble & AutoAttack \\",
        r"AT (last) & \textbf{80.00 $\pm$ 0.00} & 42.00 $\pm$ 2.83 & 42.00 $\pm$ 2.83 &  \\",
        r"\quad paper & 80.10 & 50.2\textsuperscript{1} & 45 &  \\",
        r"\quad difference & $-$0.10 & $-$8.2 & $-$3 &  \\",
        r"\quad 95\,\% interval & 60.4--78.1 & 50.2--69.1 & 50.2--69.1 &  \\",
    ):
        assert line in text
    assert r"\textbf{60.00}" in text
    assert text.isascii()
