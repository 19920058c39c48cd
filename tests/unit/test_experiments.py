"""The artefact folders of this repository: manifests name what there is, and the paper's numbers are all there."""

import json
import re
from collections import defaultdict
from decimal import Decimal
from pathlib import Path

import pytest
import yaml

from fsr_lab.report.expected import Expected
from fsr_lab.report.manifest import Manifest

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
FOLDERS = sorted(path.parent for path in (ROOT / "experiments").glob("*/manifest.yaml"))
ARTEFACTS = [folder for folder in FOLDERS if folder.name != "table7"]

# how many numbers the paper prints in each table, and their sum: counted over a transcription made independently
PRINTED = {
    "1": (72, "3981.67"), "2": (72, "3866.00"), "3": (24, "1223.12"), "4": (35, "1896.63"), "5a": (8, "341.41"),
    "5b": (8, "505.14"), "6": (24, "1191.10"), "text4.4": (4, "273"),
}  # fmt: skip


@pytest.mark.parametrize("folder", ARTEFACTS, ids=lambda folder: folder.name)
def test_a_manifest_names_what_there_is(folder):
    manifest, expected = Manifest.load(folder / "manifest.yaml"), Expected.load(folder / "expected.json")
    for experiment in manifest.experiments:
        assert (CONF / "experiment" / f"{experiment}.yaml").is_file(), experiment
    for name in manifest.shares:
        assert (folder.parent / name / "manifest.yaml").is_file()
    rows = [row for panel in manifest.panels for group in panel.groups for row in group]
    assert {row.expected for row in rows if row.expected} == set(expected.rows), "each of the paper's rows has a place"
    for panel in manifest.panels:
        named = {row.expected for group in panel.groups for row in group if row.expected}
        printed = {column for row in named for column in expected.rows[row]}
        assert printed <= set(panel.columns.values()) or panel.title.endswith("transfer with twice the radius")
        if panel.reference is not None:
            assert panel.reference in {row.name for group in panel.groups for row in group}
    for note in manifest.notes:
        assert set(note.rows) <= set(expected.rows)
        assert set(note.columns) <= {column for panel in manifest.panels for column in panel.columns}


def test_every_number_of_the_papers_tables_is_there():
    found = defaultdict(list)
    for folder in ARTEFACTS:
        for row in json.loads((folder / "expected.json").read_text())["rows"].values():
            found[row["table"]] += [Decimal(text) for text in row["values"].values()]
    assert {table: (len(values), str(sum(values))) for table, values in found.items()} == PRINTED


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_command_that_measures_it_is_there(folder):
    command = Manifest.load(folder / "manifest.yaml").make
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert command == "" or command.split()[0] == "fsr" or command.split()[1] in targets


@pytest.mark.parametrize("path", sorted((CONF / "experiment").glob("table*/*.yaml")), ids=lambda path: path.stem)
def test_a_claim_that_points_at_a_number_points_at_one(path):
    claim = yaml.safe_load(path.read_text())["claim"]["expected"]
    place, _, row = claim.partition("#")
    if row:
        assert row in json.loads((ROOT / place).read_text())["rows"]
        (spec,) = [
            each for panel in yaml.safe_load((ROOT / place).with_name("manifest.yaml").read_text())["panels"]
            for group in panel["groups"] for each in group if each.get("expected") == row
        ]  # fmt: skip
        assert spec["experiment"] == f"{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("name", ["lambda", "tau", "layer", "gumbel", "yprime"])
def test_a_grid_is_that_of_the_sweep(name):
    manifest = Manifest.load(ROOT / "experiments" / f"ablation_{name}" / "manifest.yaml")
    params = yaml.safe_load((CONF / "hparams_search" / f"{name}_grid.yaml").read_text())["hydra"]["sweeper"]["params"]
    (panel,) = manifest.panels
    for key, texts in params.items():
        values = re.findall(r"\[[^\]]*\]|[^,]+", texts)
        assert list(dict.fromkeys(row.settings[key] for group in panel.groups for row in group)) == values
