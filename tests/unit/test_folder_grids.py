"""Records without a manifest: what is one row, what is two, and what may be compared."""

import pytest
from records import made_record, rates

from fsr_lab.report.folder_grids import folder_grids, settings_of
from fsr_lab.report.gather import gather


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("seed=1", {}),
        ("defense.module.tau=0.5,seed=1", {"defense.module.tau": "0.5"}),
        ("defense.at=[layer3,layer4],seed=0", {"defense.at": "[layer3,layer4]"}),
        ("2026-01-01_00-00-00", {}),
        ("a,b", {}),
    ],
)
def test_a_directorys_name_tells_settings(name, settings):
    assert settings_of(name) == settings


def titles(folder):
    return [[line.title for line in grid.lines] for grid in folder_grids(gather(folder).measured, folder)]


def test_seeds_are_one_row(tmp_path):
    for seed in (0, 1, 2):
        made_record(rates(80, 40), seed=seed).save(tmp_path / f"seed={seed}" / "records", "last")
    (grid,) = folder_grids(gather(tmp_path).measured, tmp_path)
    (line,) = grid.lines
    assert [number.seed for number in line.cells[0].numbers] == [0, 1, 2]


def test_a_run_tells_its_own_seed_where_its_name_does_not(tmp_path):
    for seed, about in (("0", '{"seed": 0}'), ("1", '{"seed": 1}')):
        run = tmp_path / f"at_s{seed}"
        made_record(rates(80, 40), weights=seed).save(run / "records", "evaluation")  # its own seed is of the draws
        (run / "provenance.json").write_text(about)
    (grid,) = folder_grids(gather(tmp_path).measured, tmp_path)
    (line,) = grid.lines
    assert [number.seed for number in line.cells[0].numbers] == [0, 1]


@pytest.mark.parametrize("about", ["", "{}", '{"seed": null}', "[]"])
def test_a_run_that_tells_no_seed_has_that_of_its_record(tmp_path, about):
    made_record(rates(80, 40), seed=3).save(tmp_path / "at" / "records", "last")
    (tmp_path / "at" / "provenance.json").write_text(about)
    (each,) = gather(tmp_path).measured
    assert each.seed == 3


def test_what_a_sweep_varied_tells_rows_apart(tmp_path):
    for tau in ("0.1", "5"):
        made_record(rates(80, 40)).save(tmp_path / f"tau={tau},seed=0" / "records", "last")
    assert titles(tmp_path) == [["AT, tau 0.1 (last)", "AT, tau 5 (last)"]]


def test_two_networks_of_one_name_are_told_apart_by_their_places(tmp_path):
    for place, worst in (("one", 40), ("two", 50)):
        made_record(rates(80, worst)).save(tmp_path / place / "records", "last")
    assert titles(tmp_path) == [["AT [one/records/last] (last)", "AT [two/records/last] (last)"]]


def test_one_network_evaluated_twice_is_one_row(tmp_path):
    made_record(rates(80, 40), weights="w").save(tmp_path / "run" / "records", "last")
    made_record({"clean": 80, "square": 50}, weights="w").save(tmp_path / "again" / "records", "evaluation")
    (grid,) = folder_grids(gather(tmp_path).measured, tmp_path)
    assert [line.title for line in grid.lines] == ["AT (last)"]
    assert all(len(cell.numbers) == 1 for cell in grid.lines[0].cells)


@pytest.mark.parametrize("other", [{"eps": "4/255"}, {"data": "other"}, {"n": 60}, {"first": 7}])
def test_another_radius_or_other_images_are_a_table_of_their_own(tmp_path, other):
    made_record(rates(50, 40)).save(tmp_path / "one" / "records", "last")
    made_record(rates(50, 20), name="AT+FSR (last)", **other).save(tmp_path / "two" / "records", "last")
    grids = folder_grids(gather(tmp_path).measured, tmp_path)
    assert [len(grid.lines) for grid in grids] == [1, 1]
    assert [grid.tests for grid in grids] == [(), ()]


def test_of_many_rows_each_is_tested_against_the_first(tmp_path):
    for place in range(8):
        made_record({"clean": 40 + place}, name=f"net{place} (last)").save(tmp_path / str(place) / "records", "last")
    (grid,) = folder_grids(gather(tmp_path).measured, tmp_path)
    assert [(test.first, test.second) for test in grid.tests] == [(0, place) for place in range(1, 8)]
