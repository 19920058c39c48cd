"""The command line in this process, and in children of one warm process that may be stopped and killed."""

import contextlib
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from fsr_lab.cli import main

HERE = Path(__file__).parent

TINY = (
    "dataset=toy", "model=tiny_cnn", "defense=none", "strategy=natural", "optim=sgd_multistep", "model.batch_norm=true",
    "trainer.accelerator=cpu", "trainer.max_epochs=2", "trainer.log_every_n_steps=1", "evaluation=quick",
    "test_checkpoints=[last]",
)  # fmt: skip
"""What `fsr train` needs beside to be done in a second: 9 steps an epoch on 288 images."""


def pytest_collection_modifyitems(items):
    # of Lightning 2.6 about itself under torch 2.15
    known = pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")
    # of Lightning about a run that was copied elsewhere and continued there
    moved = pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(known, append=False)
            if "own" in getattr(item, "fixturenames", ()):
                item.add_marker(moved, append=False)


class Outcome(NamedTuple):
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    def refusal(self):
        """Return the one line that a wrong input gets."""
        complaints = [line for line in self.err.splitlines() if line.startswith("fsr:")]
        assert (self.code, len(complaints)) == (2, 1), self
        assert "Traceback" not in self.err
        return complaints[0]


def run_fsr(*argv):
    """Run the command line in this process, on one thread, and give logging back as it was."""
    out, err = io.StringIO(), io.StringIO()
    root, threads = logging.getLogger(), torch.get_num_threads()
    handlers, level = root.handlers[:], root.level
    torch.set_num_threads(1)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(word) for word in argv])
    except SystemExit as end:  # Hydra's way to end after --help
        code = end.code
    finally:
        torch.set_num_threads(threads)
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
    return Outcome(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def tiny():
    """Return the overrides of a run that takes a second."""
    return TINY


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Return a folder for prepared data that no test damages."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def fsr(data, tmp_path, monkeypatch):
    """Return the command line; data are shared, runs and whatever else it writes lie in tmp_path."""
    monkeypatch.setenv("FSR_DATA", str(data))
    monkeypatch.setenv("FSR_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr("fsr_lab.cli.draw_run", lambda run, title: None)  # the pictures of `trained` are looked at
    monkeypatch.chdir(tmp_path)
    return run_fsr


@pytest.fixture(scope="module")
def fsr_module(data, tmp_path_factory):
    """Return the command line for fixtures that several tests share."""
    folder = tmp_path_factory.mktemp("module")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FSR_DATA", str(data))
        patch.setenv("FSR_RUNS", str(folder / "runs"))
        patch.setattr("fsr_lab.cli.draw_run", lambda run, title: None)
        patch.chdir(folder)
        yield run_fsr


class Trained(NamedTuple):
    """A finished run that tests read and none changes."""

    run: Path
    argv: tuple[str, ...]
    outcome: Outcome


@pytest.fixture(scope="session")
def trained(data, tmp_path_factory):
    """Return a run of two epochs of adversarial training with FSR, both checkpoints attacked."""
    run = tmp_path_factory.mktemp("trained") / "run"
    argv = (
        "train", *TINY, "strategy=at", "defense=fsr", "defense.module.width=4", "threat.eps=16/255",
        "test_checkpoints=[last,best]", f"paths.data={data}", f"hydra.run.dir={run}",
    )  # fmt: skip
    return Trained(run, argv, run_fsr(*argv))


class Warm:
    """A process that has imported everything and forks a child for every command."""

    def __init__(self, env):
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "warm_process.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env,
        )  # fmt: skip

    def run(self, *argv, env=None, stops=(), faults=()):
        """Run a command line in a child.

        Args:
            argv: of `fsr`.
            env: variables of the child.
            stops: (where, step, signal) of each signal it gets: where is "train", "validate", "attack"
                or "rename", of a checkpoint.
            faults: what breaks in the child, (name, arguments) of functions of faults.py.

        Returns:
            code (negative for a signal), out, err, and what the child reported of itself.
        """
        request = {"argv": [str(word) for word in argv], "env": env or {}, "stops": stops, "faults": faults}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return Reply(**json.loads(self.process.stdout.readline()))


class Reply(NamedTuple):
    """What a child of the warm process left."""

    code: int
    out: str
    err: str
    modules: list[str]


@pytest.fixture(scope="session")
def warm(data, tmp_path_factory):
    """Return the warm process; its children run in a folder of their own, on one thread."""
    folder = tmp_path_factory.mktemp("warm")
    env = os.environ | {"OMP_NUM_THREADS": "1", "FSR_DATA": str(data), "FSR_RUNS": str(folder / "runs")}
    warm = Warm(env | {"FSR_WARM_FOLDER": str(folder)})
    yield warm
    warm.process.stdin.close()
    assert warm.process.wait(timeout=60) == 0
    warm.process.stdout.close()
