"""`fsr compare`: two records, two folders, what cannot be compared."""

import json
import shutil
from pathlib import Path

import pytest


@pytest.fixture
def records(trained):
    return trained.run / "records"


def test_two_records_are_compared(fsr, records, tmp_path):
    outcome = fsr("compare", records / "last.json", records / "best.json", f"out={tmp_path / 'there'}")
    assert outcome.code == 0, outcome.err
    for shown in ("Natural", "FGSM", "PGD-20", "difference", "McNemar"):
        assert shown in outcome.out
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == [
        "comparison.csv", "comparison.json", "comparison.md",
    ]  # fmt: skip
    told = json.loads((tmp_path / "there" / "comparison.json").read_text())
    assert [column["column"] for column in told["columns"]] == ["Natural", "FGSM", "PGD-20"]
    assert told["columns"][0]["n"] == 80


def test_without_out_nothing_is_written(fsr, records, tmp_path):
    assert fsr("compare", records / "last.json", records / "best.json").code == 0
    assert list(tmp_path.iterdir()) == []


def test_a_record_does_not_differ_from_itself(fsr, records, tmp_path):
    assert fsr("compare", records / "last.json", records / "last.json", f"out={tmp_path}").code == 0
    for column in json.loads((tmp_path / "comparison.json").read_text())["columns"]:
        assert (column["difference"], column["only_first"], column["only_second"], column["p"]) == (0, 0, 0, 1)


def test_folders_pair_up_by_name(fsr, records, tmp_path):
    copy = shutil.copytree(records, tmp_path / "copy" / "records")
    outcome = fsr("compare", records.parent, copy.parent, f"out={tmp_path / 'out'}")
    assert outcome.code == 0, outcome.err
    assert len(list((tmp_path / "out").glob("*.json"))) == 2


def test_what_cannot_be_compared_is_told_in_one_line(fsr, records, tmp_path):
    assert "expected two records, or folders that hold them" in fsr("compare", records / "last.json").refusal()
    assert "is not a whole evaluation record" in fsr("compare", records / "last.json", __file__).refusal()
    assert "no evaluation record below" in fsr("compare", records / "last.json", tmp_path).refusal()
    assert "there is no nowhere" in fsr("compare", records / "last.json", "nowhere").refusal()
    pair = (records / "last.json", records / "best.json")
    for out in (Path(__file__), Path(__file__) / "in"):
        line = fsr("compare", *pair, f"out={out}").refusal()
        assert f"expected out={out} to be a folder, and {__file__} is a file" in line
    other = shutil.copytree(records, tmp_path / "records")
    about = json.loads((other / "last.json").read_text())
    about["threat"]["eps"] = 4 / 255
    (other / "last.json").write_text(json.dumps(about))
    assert "not of the same threat" in fsr("compare", records / "last.json", other / "last.json").refusal()


def test_help_says_what_it_takes(fsr):
    outcome = fsr("compare", "--help")
    assert outcome.code == 0
    assert "fsr compare RECORD RECORD" in outcome.out
