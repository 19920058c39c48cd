"""The sweep for W&B's agent runs, and the dashboard shows what a run logs: both need no server to be found wrong."""

import importlib.util
import re
import warnings
from pathlib import Path

import pytest
import yaml
from wandb_journal import merged, of_kind, records

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "experiments" / "wandb"
WHOLE = ("scale=smoke", "evaluation=paper", "test_checkpoints=[last,best]", "trainer.log_every_n_steps=1")
"""A small run that leaves what a large one does."""
METRIC = re.compile(r"(train|val|test|mask|samples)/")


@pytest.fixture
def agent_command():
    """Return what the agent calls for a choice of parameters, the arguments of `fsr` alone."""
    from wandb.sdk.launch.sweeps import utils

    sweep = yaml.safe_load((FOLDER / "sweep.yaml").read_text())
    chosen = {name: {"value": about["values"][0]} for name, about in sweep["parameters"].items()}
    args = utils.create_sweep_command_args({"args": chosen})
    known = args | {"env": ["/usr/bin/env"], "program": [sweep["program"]]}
    words = []
    for word in utils.create_sweep_command(list(sweep["command"])):
        words += known[word[2:-1]] if word.startswith("${") and word.endswith("}") else [word]
    assert words[:2] == ["/usr/bin/env", "fsr"]
    return words[2:], {name: about["value"] for name, about in chosen.items()}, sweep["metric"]["name"]


def shown_by(model):
    """Return every metric and pattern that a workspace names."""
    found = set()

    def walk(tree):
        if isinstance(tree, dict):
            for value in tree.values():
                walk(value)
        elif isinstance(tree, list):
            for value in tree:
                walk(value)
        elif isinstance(tree, str):
            name = tree.removeprefix("summary:")
            found.update([name] if METRIC.match(name) else [])

    walk(model)
    return found


@pytest.fixture
def workspace():
    spec = importlib.util.spec_from_file_location("dashboard", FOLDER / "dashboard.py")
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # wandb-workspaces is written for an older pydantic
        spec.loader.exec_module(module)
    return module.dashboard("me", "fsr-lab")._to_model().model_dump(by_alias=True)


def test_the_agents_command_trains_and_logs_what_the_dashboard_shows(
    warm, agent_command, workspace, data, tmp_path, monkeypatch
):
    argv, chosen, goal = agent_command
    env = {"WANDB_SWEEP_ID": "s1", "WANDB_RUN_ID": "r1", "WANDB_MODE": "offline", "HOME": str(tmp_path),
           "FSR_RUNS": str(tmp_path / "runs"), "WANDB_API_KEY": ""}  # fmt: skip
    reply = warm.run(*argv, *WHOLE, env=env)
    assert reply.code == 0, reply.err
    run = tmp_path / "runs" / "wandb_sweep" / "r1"
    assert not (run / "wandb_id").exists()
    (folder,) = (run / "wandb").glob("offline-run-*-r1")
    found = records(folder)
    assert of_kind(found, "run")[0].run_id == "r1"
    module = merged([update for part in of_kind(found, "config") for update in part.update])["defense"]["module"]
    assert {f"defense.module.{name}": module[name] for name in ("tau", "lambda_sep", "lambda_rec")} == chosen
    summary = merged([update for part in of_kind(found, "summary") for update in part.update])
    logged = {*summary, *(key.rpartition("/")[0] for key in summary)}
    assert goal in logged
    for name in shown_by(workspace):
        assert any(re.fullmatch(name, key) for key in logged), name


def test_the_page_shows_what_the_dashboard_contains(workspace):
    page = (FOLDER / "README.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and line.count("|") >= 4]
    named = {word.replace("\\|", "|") for line in rows for word in re.findall(r"`([^`]+)`", line.rpartition(" | ")[2])}
    assert shown_by(workspace) <= named
    panels = [
        panel for section in workspace["spec"]["section"]["panelBankConfig"]["sections"] for panel in section["panels"]
    ]
    titles = {panel["config"].get("chartTitle") or panel["config"].get("title") for panel in panels} - {None}
    assert titles
    assert all(f"| {title} |" in page for title in titles)
