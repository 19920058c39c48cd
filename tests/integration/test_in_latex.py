"""A report's tables in LaTeX: they compile, and nothing of them is lost."""

import shutil
import subprocess
from pathlib import Path

import pytest
from records import kept, made_artefact, made_record, rates

from fsr_lab.report.artefact import read_artefact
from fsr_lab.report.artefact_page import write_artefact
from fsr_lab.report.latex import grids_latex

pytestmark = pytest.mark.latex

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def compiled(text, folder):
    """Compile a table with nothing but booktabs, and return what pdflatex said."""
    assert shutil.which("pdflatex"), "no pdflatex; make test-pages installs it"
    (folder / "table.tex").write_text(text)
    lines = [r"\documentclass{article}", r"\usepackage{booktabs}", r"\begin{document}", r"\input{table}"]
    (folder / "all.tex").write_text("\n".join([*lines, r"\end{document}", ""]))
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
        cwd=folder, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert (folder / "all.pdf").read_bytes().startswith(b"%PDF")
    return done.stdout


def test_a_table_of_measured_rows_compiles(tmp_path):
    folder = made_artefact(tmp_path / "table0")
    for name, experiment, worst in (("AT", "table0/at", 40), (r"50% & more_\{x}^~#$|±τ𝒩", "table0/at_fsr", 60)):
        for seed in (0, 1):
            record = made_record(rates(80, worst), name=f"{name} (last)", seed=seed)
            record.save(kept(folder, "cpu", experiment, seed) / "records", "last")
    write_artefact(folder)
    said = compiled((folder / "table.tex").read_text(), tmp_path)
    assert "Undefined" not in said
    assert "Missing character" not in said


@pytest.mark.parametrize(
    "folder", sorted(path.parent for path in EXPERIMENTS.glob("*/table.tex")), ids=lambda path: path.name
)
def test_the_tables_that_are_kept_compile(folder, tmp_path):
    compiled((folder / "table.tex").read_text(), tmp_path)


def test_a_letter_without_a_name_is_seen(tmp_path):
    folder = made_artefact(tmp_path / "table0")
    found = read_artefact(folder)
    assert grids_latex(found.grids, ["a note with 漢"]).isascii()
