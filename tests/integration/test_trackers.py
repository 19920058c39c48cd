"""Trackers never matter: whatever they do, weights, records and the exit code are those of a run without them."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

SPEC = importlib.util.spec_from_file_location("bad_trackers", Path(__file__).with_name("bad_trackers.py"))
BAD = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(BAD)

QUICK = (
    "strategy=at",
    "defense=fsr",
    "defense.module.width=4",
    "trainer.max_epochs=1",
    "test_samples=20",
    "attack=[fgsm]",
)


def same(one, two):
    """Compare whatever two checkpoints hold but where their files lie."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


def left(run):
    """Return what a run left: its checkpoint but for the callbacks, which know paths, and its record's arrays."""
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    with np.load(run / "records" / "last.npz") as stream:
        arrays = {name: torch.from_numpy(stream[name]) for name in stream.files}
    return {"checkpoint": {k: v for k, v in checkpoint.items() if k != "callbacks"}, "record": arrays}


@pytest.fixture(scope="module")
def alone(warm, tiny, tmp_path_factory):
    """Return what the run leaves without any tracker."""
    run = tmp_path_factory.mktemp("alone") / "run"
    reply = warm.run("train", *tiny, *QUICK, f"hydra.run.dir={run}")
    assert reply.code == 0, reply.err
    return left(run)


def test_no_fault_of_any_tracker_changes_anything_about_a_run(warm, tiny, tmp_path, alone):
    run, bad = tmp_path / "run", BAD.overrides()
    given = [word for words in bad.values() for word in words]
    reply = warm.run("train", *tiny, *QUICK, *given, "trackers.patience=0.5", f"hydra.run.dir={run}")
    assert reply.code == 0, reply.err
    assert same(left(run), alone)
    told = [line for line in reply.err.splitlines() if line.startswith("tracker ")]
    for name in bad:
        mine = [line for line in told if line.startswith(f"tracker '{name}'")]
        # nobody reads the attributes of the logger behind the thread, so that their faults never come up
        assert len(mine) == (0 if name.startswith("attributes") else 1), (name, mine)
    assert "Traceback" not in reply.err
    assert (run / "metrics" / "version_0" / "metrics.csv").stat().st_size


def test_a_failing_run_fails_for_its_own_reason(warm, tiny, tmp_path):
    bad = [word for words in BAD.overrides().values() for word in words]
    argv = (*tiny, *QUICK, *bad, "optim.lr=1e9", "trackers.patience=0.5", f"hydra.run.dir={tmp_path / 'run'}")
    reply = warm.run("train", *argv)
    (line,) = (line for line in reply.err.splitlines() if line.startswith("fsr:"))
    assert reply.code == 2
    assert "finite" in line
