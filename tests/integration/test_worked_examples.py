"""The commands of the pages on adding an attack, a strategy, a defence, a dataset and a model, as they stand there.

tests/contract holds the files that the pages show against what the built-in ones keep.
"""

import re
import shlex

import pytest
from worked_examples import PAGES, write_examples

NAMES = {page.stem: page for page in PAGES}


@pytest.mark.parametrize("name", NAMES)
def test_the_page_of_a_worked_example_runs(name, fsr, tmp_path, monkeypatch):
    write_examples([NAMES[name]], tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    commands = re.findall(r"^\$ fsr (.*)$", NAMES[name].read_text(), re.MULTILINE)
    assert commands, name
    for command in commands:
        outcome = fsr(*shlex.split(command))
        assert outcome.code == 0, outcome
