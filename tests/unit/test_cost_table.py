"""Cost records, and the table that puts the paper's figures beside them."""

import csv
import io
import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from rich.console import Console

from fsr_lab.core.cost import Cost, CostRecord, CostRow
from fsr_lab.core.provenance import Provenance
from fsr_lab.report.cost import cost_table, write_cost_report
from fsr_lab.report.expected_cost import ExpectedCosts

TABLE7 = Path(__file__).parents[2] / "experiments" / "table7" / "expected.json"
ABOUT = Provenance(
    command="fsr cost", revision="0123456789abcdef", dirty=False,
    versions={"fsr-lab": "0.1.0", "python": "3.11.7", "torch": "2.15.0"}, hashes={}, host={}, seed=0,
)  # fmt: skip

# counts of METHOD §1.8 and §1.9, the FLOPs to the digits given there
COUNTS = {
    ("resnet18", "none"): Cost(11_173_962, 0, 1_113_300_000, 555_423_000, 555_423_000),
    ("resnet18", "fsr"): Cost(12_432_980, 1_259_018, 1_153_470_000, 575_477_000, 575_492_000),
    ("vgg16", "none"): Cost(15_253_578, 0, 629_920_000, 313_726_000, 313_726_000),
    ("vgg16", "fsr"): Cost(16_512_596, 1_259_018, 670_080_000, 333_780_000, 333_795_000),
}


def row(model="resnet18", defense="none", **changes):
    cost = COUNTS[model, defense]
    filled = CostRow(model=model, defense=defense, settings=(), image_shape=(3, 32, 32), num_classes=10, cost=cost)
    return replace(filled, **changes)


def record(*rows):
    return CostRecord(rows=rows, provenance=ABOUT)


@pytest.fixture
def expected():
    return ExpectedCosts.load(TABLE7)


@pytest.fixture
def paper(expected):
    """Return the table of the paper's four rows."""
    return cost_table([record(*(row(*key) for key in COUNTS))], expected)


def changed(tmp_path, change):
    """Return what is expected after a change to the file's content."""
    content = json.loads(TABLE7.read_text())
    change(content)
    path = tmp_path / "expected.json"
    path.write_text(json.dumps(content))
    return ExpectedCosts.load(path)


def test_the_papers_figures_are_those_printed(expected):
    assert {key: tuple(printed.figures.values()) for key, printed in expected.rows.items()} == {
        ("resnet18", "none"): ("11.17", "1.1133"), ("resnet18", "fsr"): ("12.43", "1.1535"),
        ("vgg16", "none"): ("15.25", "0.6299"), ("vgg16", "fsr"): ("16.52", "0.6701"),
    }  # fmt: skip


def test_seven_of_eight_figures_come_out_and_the_eighth_has_its_reason(paper, expected):
    differing = {
        (line.model, line.defense, name): (str(figure.ours), str(figure.paper), str(figure.difference))
        for line, figures in zip(paper.rows, paper.figures, strict=True)
        for name, figure in figures.items()
        if figure.difference
    }
    assert differing == {("vgg16", "fsr", "parameters"): ("16.51", "16.52", "-0.01")}
    assert sum(len(figures) for figures in paper.figures) == 8
    assert (
        "7 of the 8 figures compared with Table 7 (Kim et al., CVPR 2023, arXiv:2303.13846) come out" in paper.verdict
    )
    reason = expected.rows["vgg16", "fsr"].reasons["parameters"]
    assert f"vgg16 + fsr, parameters: 16.51 here, 16.52 there, -0.01. {reason}" in paper.verdict
    assert "not known" not in paper.verdict


def test_a_deviation_is_shown_and_not_explained_away(tmp_path):
    def shift(content):
        content["rows"]["resnet18_fsr"]["flops"] = "1.1537"

    table = cost_table([record(row("resnet18", "fsr"))], changed(tmp_path, shift))
    assert "1 of the 2 figures compared" in table.verdict
    assert "resnet18 + fsr, flops: 1.1535 here, 1.1537 there, -0.0002. The reason is not known." in table.verdict
    assert "| resnet18 | fsr | 12.43 | 12.43 | 0.00 | 1.1535 | 1.1537 | -0.0002 |" in table.markdown()


def test_a_deviation_of_ours_is_shown(expected):
    heavier = row("vgg16", "none", cost=COUNTS["vgg16", "none"]._replace(flops=631_160_000, parameters=15_263_578))
    (figures,) = cost_table([record(heavier)], expected).figures
    assert {name: figure.difference for name, figure in figures.items()} == {
        "parameters": Decimal("0.01"), "flops": Decimal("0.0013"),
    }  # fmt: skip
    page = cost_table([record(heavier)], expected).markdown()
    assert "| vgg16 | none | 15.26 | 15.25 | +0.01 | 0.6312 | 0.6299 | +0.0013 |" in page


def test_a_reason_without_a_difference_is_not_shown(tmp_path):
    def excuse(content):
        content["rows"]["resnet18"]["reasons"] = {"flops": "Excused beforehand."}

    assert "Excused" not in cost_table([record(row())], changed(tmp_path, excuse)).verdict


def test_ours_is_rounded_to_the_decimals_that_the_paper_prints(tmp_path):
    def coarse(content):
        content["rows"]["resnet18"] |= {"flops": "1.1", "parameters": "11.2"}

    (figures,) = cost_table([record(row())], changed(tmp_path, coarse)).figures
    assert [str(figure.ours) for figure in figures.values()] == ["11.2", "1.1"]
    assert not any(figure.difference for figure in figures.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"image_shape": (3, 64, 64)},
        {"num_classes": 100},
        {"settings": ("model.width=16",)},
        {"model": "tiny_cnn"},
        {"defense": "fd"},
        {"cost": None, "reason": "why"},
    ],
)
def test_other_networks_are_not_compared(changes, expected):
    assert expected.compare(replace(row(), **changes)) == {}
    assert expected.compare(row())


def test_without_a_figure_of_the_paper_there_is_no_second_table(expected):
    alone = cost_table([record(row())], None)
    assert alone.verdict == ""
    assert alone.markdown().count("\n|---|") == 1
    assert cost_table([record(row(num_classes=100))], expected).verdict == ""


def test_markdown(paper):
    lines = paper.markdown().splitlines()
    assert lines[:3] == [
        "| model | defence | image | K | parameters | of the defence | FLOPs (G) | MACs (M) | with heads (M) |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|",
        "| resnet18 | none | 3x32x32 | 10 | 11,173,962 | 0 | 1.1133 | 555.42 | 555.42 |",
    ]
    assert lines[5] == "| vgg16 | fsr | 3x32x32 | 10 | 16,512,596 | 1,259,018 | 0.6701 | 333.78 | 333.80 |"
    beside = lines.index("| model | defence | params (M) | paper | difference | FLOPs (G) | paper | difference |")
    assert lines[beside + 1 : beside + 6] == [
        "|---|---|--:|--:|--:|--:|--:|--:|",
        "| resnet18 | none | 11.17 | 11.17 | 0.00 | 1.1133 | 1.1133 | 0.0000 |",
        "| resnet18 | fsr | 12.43 | 12.43 | 0.00 | 1.1535 | 1.1535 | 0.0000 |",
        "| vgg16 | none | 15.25 | 15.25 | 0.00 | 0.6299 | 0.6299 | 0.0000 |",
        "| vgg16 | fsr | 16.51 | 16.52 | -0.01 | 0.6701 | 0.6701 | 0.0000 |",
    ]
    assert "\n".join(lines[beside + 7 :]) == paper.verdict


def test_a_figure_that_the_paper_lacks_is_left_empty(tmp_path):
    def forget(content):
        del content["rows"]["resnet18"]["parameters"]

    page = cost_table([record(row())], changed(tmp_path, forget)).markdown()
    assert "| resnet18 | none |  |  |  | 1.1133 | 1.1133 | 0.0000 |" in page


def test_csv_has_exact_counts(paper):
    rows = list(csv.DictReader(io.StringIO(paper.csv())))
    assert len(rows) == 4
    assert rows[3] == {
        "model": "vgg16", "defense": "fsr", "settings": "", "image_shape": "3x32x32", "num_classes": "10",
        "parameters": "16512596", "defense_parameters": "1259018", "flops": "670080000", "macs": "333780000",
        "macs_with_aux": "333795000", "paper_parameters": "16.52", "difference_parameters": "-0.01",
        "paper_flops": "0.6701", "difference_flops": "0.0000", "reason": "",
    }  # fmt: skip


def test_a_row_that_cannot_be_built_says_why_and_leaves_the_others(expected):
    failed = row("vgg16", "none", cost=None, reason="images | too small", settings=("model.width=1",))
    table = cost_table([record(row(), failed)], expected)
    assert table.headings[-1] == "reason"
    lines = table.markdown().splitlines()
    assert lines[1] == "|---|---|---|" + "--:|" * 6 + "---|"
    assert lines[2].endswith("| 555.42 | 555.42 |  |")
    assert lines[3] == "| vgg16 | none model.width=1 | 3x32x32 | 10 |" + "  |" * 5 + " images \\| too small |"
    assert list(csv.DictReader(io.StringIO(table.csv())))[1]["reason"] == "images | too small"


def test_a_terminal_shows_every_cell(paper):
    stream = io.StringIO()
    Console(file=stream, width=160, color_system=None).print(paper.rich())
    for cell in ("resnet18", "vgg16", "3x32x32", "16,512,596", "1,259,018", "0.6701", "16.52", "-0.01", "A slip"):
        assert cell in stream.getvalue()


def test_where_nothing_could_be_counted_the_first_reason_is_the_error(expected):
    failed = [row(cost=None, reason=reason) for reason in ("first", "second")]
    with pytest.raises(ValueError, match=r"^first$"):
        cost_table([record(*failed)], expected)
    with pytest.raises(ValueError, match="no backbone under a defence to count; name one, as model=resnet18"):
        cost_table([record()], expected)


def test_records_round_trip(tmp_path):
    before = record(row("resnet18", "fsr"), row(cost=None, reason="why", settings=("defense.at=x",)))
    before.save(tmp_path / "costs.json")
    assert CostRecord.load(tmp_path / "costs.json") == before


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"rows": [{"model": "resnet18"}], "provenance": {}}', "\x00"])
def test_a_damaged_record_is_refused_in_one_line(tmp_path, damage):
    path = tmp_path / "costs.json"
    path.write_text(damage)
    with pytest.raises(ValueError, match=r"is not a readable cost record .*; run fsr cost again"):
        CostRecord.load(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("flops", 0.63), ("flops", "about one"), ("parameters", "nan"), ("model", None), ("reasons", 3)],
)
def test_a_damaged_table_of_the_paper_is_refused(tmp_path, key, value):
    def damage(content):
        content["rows"]["vgg16_fsr"][key] = value
        if value is None:
            del content["rows"]["vgg16_fsr"][key]

    with pytest.raises(ValueError, match="is not a readable table of expected costs"):
        changed(tmp_path, damage)


def test_the_page_is_a_function_of_the_folder(tmp_path):
    record(row(), row("resnet18", "fsr")).save(tmp_path / "a" / "costs.json")
    record(row("vgg16", "fsr")).save(tmp_path / "b" / "costs.json")
    (tmp_path / "expected.json").write_text(TABLE7.read_text())
    (tmp_path / "notes.md").write_text("A person's words.\n")
    table, path = write_cost_report(tmp_path)
    text = path.read_text()
    assert text.startswith(f"# {tmp_path.name}\n\nA person's words.\n")
    assert table.markdown() in text
    said = "revision 0123456789; fsr-lab 0.1.0, python 3.11.7, torch 2.15.0."
    for place in ("a/costs.json", "b/costs.json"):
        assert f"    fsr cost\n\n[{place}]({place}), {said}" in text
    assert (tmp_path / "table.csv").read_text() == table.csv()
    assert len(table.rows) == 3
    write_cost_report(tmp_path)
    assert path.read_text() == text
