"""The README's results are what the kept records say, and the script that writes them touches nothing else."""

import shutil
from pathlib import Path

import pytest
from records import kept, made_artefact, made_record, rates
from scripts import loaded

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def readme():
    return loaded(ROOT / "experiments" / "readme.py")


def test_the_readme_says_what_the_records_say(readme):
    text = (ROOT / "README.md").read_text()
    assert readme.written(text, readme.results(ROOT)) == text, "run python experiments/readme.py"


def test_what_was_measured_is_shown_and_what_was_not_is_left_out(readme, tmp_path):
    folder = made_artefact(tmp_path / "experiments" / "table0")
    (tmp_path / "experiments" / "adaptive").mkdir()
    assert readme.results(tmp_path) == "Nothing is measured yet.\n"
    made_record(rates(80, 40)).save(kept(folder, "cpu", "table0/at") / "records", "last")
    made_record(rates(90, 45), name="AT (best)").save(kept(folder, "cpu", "table0/at") / "records", "best")
    said = readme.results(tmp_path)
    assert "scale cpu" in said
    assert "none of the paper's" in said
    assert "[80.00](experiments/table0/records/cpu/table0/at/seed=0/records/last.json)" in said
    assert "90.00" not in said
    assert "AT+FSR" not in said
    shutil.rmtree(folder / "records")
    assert readme.results(tmp_path) == "Nothing is measured yet.\n"


def test_only_what_stands_between_the_marks_is_written(readme):
    text = f"# Title\n\n{readme.BEGIN}\nold\n{readme.END}\n\n## Next\n"
    assert readme.written(text, "new\n") == f"# Title\n\n{readme.BEGIN}\n\nnew\n\n{readme.END}\n\n## Next\n"
    assert readme.written(readme.written(text, "new\n"), "new\n") == readme.written(text, "new\n")
    with pytest.raises(ValueError, match="no place for results"):
        readme.written("# Title\n", "new\n")
