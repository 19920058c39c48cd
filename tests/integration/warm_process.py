"""Imports everything once, then forks a child for each command line that a test sends: no test by itself.

A child may be told to wait at a step of training or validation, where it gets a real signal from its parent.
"""

import json
import os
import signal
import sys
import tempfile
from pathlib import Path

import faults
import lightning  # noqa: F401
import torch  # noqa: F401
import torchmetrics  # noqa: F401

import fsr_lab.cli
import fsr_lab.dataset.toy
import fsr_lab.engine.run
import fsr_lab.evaluation.run
import fsr_lab.report.page
from fsr_lab.engine.module import RobustClassifier


def serve(folder):
    for line in sys.stdin:
        request = json.loads(line)
        place = tempfile.mkdtemp(dir=folder)  # stays: what a killed child started still runs there
        reply = answer(request, Path(place))
        print(json.dumps(reply), flush=True)


def answer(request, place):
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        become_child(request, place, ready[1], go[0])
    os.close(ready[1])
    os.close(go[0])
    for _, _, name in request["stops"]:
        if os.read(ready[0], 1) == b"":
            break  # it ended without getting there
        os.kill(child, signal.Signals[name])
        os.write(go[1], b"x")
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(ready[0])
    os.close(go[1])
    modules = place / "modules"
    return {
        "code": code,
        "out": (place / "out").read_text(),
        "err": (place / "err").read_text(),
        "modules": modules.read_text().split() if modules.exists() else [],
    }


def become_child(request, place, ready, go):
    for number, name in ((0, os.devnull), (1, place / "out"), (2, place / "err")):
        os.dup2(os.open(name, os.O_RDONLY if number == 0 else os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
    os.environ.update(request["env"])
    os.chdir(place)
    fsr_lab.cli.draw_run = lambda run, title: None  # pictures are test_cli's
    for fault, *given in request["faults"]:
        getattr(faults, fault)(*given)
    for where, step, _ in request["stops"]:
        wait_at(where, step, ready, go)
    code = 70
    try:
        code = fsr_lab.cli.main(request["argv"])
        faults.small_files_no_more()
        (place / "modules").write_text(" ".join(sys.modules))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait_at(where, step, ready, go):
    """Let the child say that it is there, and go on once it has been signalled; once, whatever follows.

    Steps are those of training; of an attack, the cells of the evaluation that went before; of a rename, the last
    checkpoints that were put in place before.
    """
    owner, method = {
        "train": (RobustClassifier, "training_step"),
        "validate": (RobustClassifier, "validation_step"),
        "attack": (fsr_lab.evaluation.run, "run_cells"),
        "rename": (os, "replace"),
    }[where]
    original = getattr(owner, method)
    calls, passed = [], []

    def waiting(first, *args, **kwargs):
        if where == "rename" and not Path(first).name.startswith(".last.ckpt"):
            return original(first, *args, **kwargs)
        calls.append(where)
        reached = len(calls) - 1 if where in ("attack", "rename") else first.global_step
        if reached == step and not passed:
            passed.append(step)
            os.write(ready, b"x")
            os.read(go, 1)
        return original(first, *args, **kwargs)

    setattr(owner, method, waiting)


if __name__ == "__main__":
    serve(os.environ["FSR_WARM_FOLDER"])
