"""The commands of the documentation as they stand there.

Pages on adding an attack, a strategy, a defence, a dataset and a model run on the files that they show, which
tests/contract holds against what the built-in ones keep. Pages on concepts run one after the other, in the order of the
site, since what one leaves the next looks at.
"""

import re
import shlex

import pytest
from worked_examples import DOCS, PAGES, write_examples

NAMES = {page.stem: page for page in PAGES}


def run_page(page, fsr):
    """Run every fsr command of a page, in order; none may fail."""
    commands = re.findall(r"^\$ fsr (.*)$", page.read_text(), re.MULTILINE)
    assert commands, page
    for command in commands:
        outcome = fsr(*shlex.split(command))
        assert outcome.code == 0, (command, outcome)


@pytest.mark.parametrize("name", NAMES)
def test_the_page_of_a_worked_example_runs(name, fsr, tmp_path, monkeypatch):
    write_examples([NAMES[name]], tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    run_page(NAMES[name], fsr)


@pytest.mark.slow
def test_the_pages_on_concepts_run(fsr, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    listed = re.findall(r"concepts/\w+\.md", (DOCS.parent / "mkdocs.yml").read_text())
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.glob("concepts/*.md"))
    for page in listed:
        run_page(DOCS / page, fsr)
