"""The notebook of the documentation: what it is stored with, and that it shows it again when it is run.

After a change that moves its outputs they are stored anew by

    FSR_RECORD_NOTEBOOK=1 python -m pytest -m slow tests/integration/test_notebook.py
"""

import ast
import base64
import copy
import io
import json
import os
import re
from importlib import import_module

import nbformat
import pytest
from docs_hooks import DOCS, filled, hook
from PIL import Image

import fsr_lab

PATH = DOCS / "look_inside.ipynb"
FACTS = """
import json
json.dumps({
    "clean": int(record.correct("clean").sum()),
    "robust": int(record.correct("pgd20").sum()),
    "by_hand": int((predicted == y).sum()),
    "moved": float((x_adv - x).abs().max()),
    "pixels": [float(x_adv.min()), float(x_adv.max())],
    "masks": [float(clean.min()), float(clean.max()), float(attacked.min()), float(attacked.max())],
    "turned": float((clean - attacked).abs().max()),
    "maps": {name: [float(each.amin()), float(each.amax((1, 2)).amin())] for name, each in maps.items()},
    "keys": list(network.state_dict()),
})
"""


@pytest.fixture
def notebook():
    return nbformat.read(PATH, as_version=4)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def images_of(notebook):
    return [
        output.data["image/png"]
        for cell in code_of(notebook)
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]


def test_it_is_stored_whole(notebook):
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in code_of(notebook)] == list(range(1, len(code_of(notebook)) + 1))
    assert all(cell.outputs for cell in code_of(notebook))
    pictures = [Image.open(io.BytesIO(base64.b64decode(text))) for text in images_of(notebook)]
    assert len(pictures) == 3
    assert all(len(picture.convert("RGB").getcolors(1 << 24)) > 20 for picture in pictures)  # none is blank


def test_it_tells_nothing_of_the_machine_it_ran_on(notebook):
    assert PATH.stat().st_size < 1_000_000
    told = [output for cell in code_of(notebook) for output in cell.outputs]
    assert {output.output_type for output in told} <= {"stream", "display_data"}
    assert all(output.name == "stdout" for output in told if output.output_type == "stream")
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert set(notebook.metadata.language_info) == {"name"}
    assert all(set(cell.metadata) <= {"alt"} for cell in notebook.cells)
    assert not re.search(r"/(home|root|tmp|usr|opt|work|Users)/|[A-Z]:\\", PATH.read_text())


def test_every_figure_says_what_it_shows(notebook):
    for cell in code_of(notebook):
        drawn = any("image/png" in output.get("data", {}) for output in cell.outputs)
        assert drawn == (len(cell.metadata.get("alt", "")) > 40)


def test_what_it_imports_is_there(notebook):
    tree = ast.parse("\n".join(cell.source for cell in code_of(notebook)))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    taken = {node.module: [alias.name for alias in node.names] for node in found}
    assert set(taken["fsr_lab"]) <= set(fsr_lab.__all__)
    assert [(name, each) for name in taken for each in taken[name] if not hasattr(import_module(name), each)] == []


def test_its_page_shows_all_of_it(notebook):
    called = hook("notebook_page").on_page_markdown
    shown = filled(called, "look_inside.md")
    assert all(cell.source.strip() in shown for cell in notebook.cells)
    pictures = [text.replace("\n", "") for text in images_of(notebook)]
    assert re.findall(r"!\[[^]]+\]\(data:image/png;base64,([^)]+)\)", shown) == pictures
    with pytest.raises(ValueError, match="put it where the notebook goes"):
        filled(called, "look_inside.md", "# Another page")


@pytest.mark.slow
def test_it_runs_and_shows_what_it_says(notebook, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    for name in ("JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):  # none of the user's own kernels and settings
        monkeypatch.setenv(name, str(tmp_path / name))
    run = copy.deepcopy(notebook)
    run.cells.append(nbformat.v4.new_code_cell(FACTS))
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(run, timeout=1200, record_timing=False, coalesce_streams=True, resources=place).execute()
    facts = json.loads(ast.literal_eval(run.cells.pop().outputs[-1].data["text/plain"]))

    # of 180 images of ten classes chance has 18, and a standard error of 4
    assert facts["clean"] > 0.8 * 180
    assert facts["robust"] > 0.35 * 180
    assert facts["robust"] == facts["by_hand"] <= facts["clean"]
    assert 0.119 < facts["moved"] <= 0.12 + 1e-6
    assert 0 <= facts["pixels"][0] <= facts["pixels"][1] <= 1
    assert 0 <= min(facts["masks"]) < 0.01 < 0.99 < max(facts["masks"]) <= 1
    assert 0.1 < facts["turned"] <= 1
    assert len(facts["maps"]) == 4
    assert all(lowest >= 0 for lowest, _ in facts["maps"].values())
    assert not [key for key in facts["keys"] if "separation" in key or "tap" in key]
    shapes = [Image.open(io.BytesIO(base64.b64decode(text))).size for text in images_of(run)]
    assert [image[0] > 300 for image in shapes] == [True] * 3

    if os.environ.get("FSR_RECORD_NOTEBOOK"):
        keep(run)


def keep(run):
    """Store a notebook with its outputs, and without what is only of this run."""
    run.metadata.language_info = {"name": "python"}
    for cell in code_of(run):
        cell.metadata = {name: text for name, text in cell.metadata.items() if name == "alt"}
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]  # progress
    nbformat.write(run, PATH)
