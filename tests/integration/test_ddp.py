"""One process, two and four (gloo): the same gradients, the same accuracy, and the jobs asked for, no more."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fsr_lab.core.record import EvaluationRecord
from fsr_lab.model.tiny_cnn import TinyCNN

TWO, FOUR = (("trainer=ddp", f"trainer.devices={count}", "trainer.accelerator=cpu") for count in (2, 4))


def state(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def weights(run):
    return {name.removeprefix("model.backbone."): value for name, value in state(run)["state_dict"].items()}


@pytest.mark.slow
@pytest.mark.parametrize("more", [TWO, FOUR], ids=["two", "four"])
def test_one_process_and_more_see_the_same_gradients(fsr, tiny, tmp_path, monkeypatch, more):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # 33 images are no multiple of the ranks, so that each has to weigh its share; with plain SGD at rate 1 the weights
    # have changed by the gradient after one step
    step = (
        "strategy=at", "strategy.attack.random_start=false", "model.batch_norm=false", "optim=sgd_multistep",
        "optim.lr=1", "optim.optimizer.momentum=0", "optim.optimizer.weight_decay=0", "trainer.max_steps=1",
        "dataset.batch_size=33", "dataset.val_size=0", "evaluation=none",
    )  # fmt: skip
    for name, devices in (("one", ()), ("more", more)):
        outcome = fsr("train", *tiny, *step, *devices, f"hydra.run.dir={tmp_path / name}")
        assert outcome.code == 0, outcome.err
    one, two = weights(tmp_path / "one"), weights(tmp_path / "more")
    assert state(tmp_path / "one")["global_step"] == state(tmp_path / "more")["global_step"] == 1
    torch.manual_seed(0)
    initial = TinyCNN(num_classes=4).state_dict()
    assert one.keys() == two.keys() == initial.keys()
    for name, before in initial.items():
        assert (before - one[name]).abs().max() > 1e-3, name
        assert torch.allclose(one[name], two[name], rtol=0, atol=1e-6), name


def names(run):
    """Return the names of all files of a run, but for those of Hydra, which names its own."""
    return {
        path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file() and ".hydra" not in path.parts
    }


COMBINATIONS = [
    *(f"strategy=at defense={name}" for name in ("none", "fsr", "fsr_wo_sep", "fsr_wo_rec", "fd", "cas", "cifs")),
    "strategy=trades defense=cas", "strategy=mart defense=cifs", "strategy=alp defense=fsr",
    "strategy=cat defense=fsr", "strategy=cat strategy.strength=0 defense=fsr", "strategy=fat defense=fsr",
    "strategy=s2o_trades defense=fsr", "strategy=trades defense=fsr modifier=[awp]", "strategy=mart defense=none",
    "strategy=at defense=fd_dot", "strategy=at defense=kwta", "strategy=at defense=sap",
    "strategy=at defense=fsr defense.module.detach_f_for_aux=true",
    "strategy=at defense=fsr defense.module.mask=attribution",
    "strategy=trades defense=fsr defense.module.loss_on=both",
    "strategy=mart defense=fsr defense.module.heads=criterion",
]  # fmt: skip


@pytest.mark.slow
def test_no_parameter_is_left_unused_and_all_ranks_agree(tmp_path):
    """DDP's default: a parameter without a gradient is an error in the step after."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = Path(__file__).with_name("ddp_steps.py")
    ranks = [
        subprocess.Popen(
            [sys.executable, script, str(rank), port, str(tmp_path), *COMBINATIONS],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for rank in (0, 1)
    ]  # fmt: skip
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(said)
    losses = json.loads((tmp_path / "losses.json").read_text())
    assert list(losses) == COMBINATIONS
    assert all(len(values) == 3 and np.isfinite(values).all() for values in losses.values())


@pytest.mark.slow
def test_a_sweep_of_two_jobs_in_several_processes_trains_two_jobs_as_well_as_one_process(
    fsr, tiny, tmp_path, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    job = (
        "strategy=at", "strategy.attack.steps=3", "val_attack.steps=3", "defense=fsr", "defense.module.width=8",
        "optim=sgd_onecycle", "optim.lr=0.1", "trainer.max_epochs=8", "seed=0,1", "dataset.test_size=400",
        "evaluation.attacks.pgd20.steps=5", "evaluation.attacks.pgd20.relative_step=0.4", "chunk=150",
        f"paths.data={tmp_path / 'data'}",
    )  # fmt: skip
    runs = {}
    for name, devices in (("one", ()), ("two", TWO), ("four", FOUR)):
        sweep = (f"hydra.sweep.dir={tmp_path / name}", "hydra.sweep.subdir=job${seed}")
        outcome = fsr("train", "-m", *tiny, *job, *devices, *sweep)
        assert outcome.code == 0, outcome.err
        assert outcome.out.count("report: ") == 1
        runs[name] = sorted(path.parent for path in (tmp_path / name).glob("**/status.json"))
        assert [run.name for run in runs[name]] == ["job0", "job1"]
    withstood = {"one": [], "two": [], "four": []}
    for name, found in runs.items():
        for run in found:
            # each rank takes its part of every batch, so that all make equally many steps
            assert state(run)["global_step"] == 8 * 9
            assert names(run) == names(runs["one"][0])  # the first rank writes, and no other
            record = EvaluationRecord.load(run / "records" / "last.json")
            assert len(record) == len(set(record.ids.tolist())) == 400  # shards of 150 and a rest, none padded
            assert record.correct("clean").mean() > 0.95
            withstood[name].append(record.correct("pgd20").mean())
    # BatchNorm sees a rank's part of the batch; the batch and the learning rate are the same (conf/trainer/ddp.yaml).
    # 400 images and two seeds: a standard error of two points in each, and what seeds do beside
    assert np.mean(withstood["one"]) > 0.8
    for name in ("two", "four"):
        assert np.mean(withstood[name]) == pytest.approx(np.mean(withstood["one"]), abs=0.1), name
    again = ("evaluate", f"run={runs['two'][0]}", "ledger=none", "chunk=150", "evaluation=quick", *job[-4:-2])
    outcome = fsr(*again, f"paths.data={tmp_path / 'data'}", f"hydra.run.dir={tmp_path / 'again'}", "device=cpu")
    assert outcome.code == 0, outcome.err
    sharded = EvaluationRecord.load(runs["two"][0] / "records" / "last.json")
    alone = EvaluationRecord.load(tmp_path / "again" / "records" / "evaluation.json")
    assert np.array_equal(sharded.outcome, alone.outcome)
    assert np.array_equal(sharded.margin, alone.margin, equal_nan=True)


def to_all(pid):
    os.killpg(pid, signal.SIGINT)  # as a terminal does: to every process at once


def to_one(pid):
    os.kill(pid, signal.SIGUSR1)  # as a scheduler may: to the process that it started


@pytest.mark.slow
@pytest.mark.parametrize("ask", [to_all, to_one])
def test_who_is_asked_to_stop_stops_all_ranks_and_the_run_is_continued(tiny, data, tmp_path, ask):
    run = tmp_path / "run"
    env = os.environ | {"OMP_NUM_THREADS": "1", "FSR_DATA": str(data), "FSR_RUNS": str(tmp_path / "runs")}
    script = Path(sys.executable).with_name("fsr")
    command = [
        script,
        "train",
        *tiny,
        *TWO,
        "evaluation=none",
        "optim=sgd_multistep",
        "trainer.max_epochs=500",
        f"hydra.run.dir={run}",
    ]
    where = {"cwd": tmp_path, "env": env, "text": True}
    running = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True, **where
    )
    said = []
    for line in running.stderr:
        said.append(line)
        if line.startswith("epoch 3/"):
            ask(running.pid)
    running.stderr.close()
    text = "".join(said)
    assert running.wait(timeout=60) == 130, text
    (line,) = [line for line in said if line.startswith("fsr:")]
    assert f"fsr train resume={run}" in line
    with pytest.raises(ProcessLookupError):
        os.killpg(running.pid, 0)
    stopped = state(run)
    assert stopped["global_step"] >= 3 * 9
    assert json.loads((run / "status.json").read_text())["state"] == "running"
    more = stopped["global_step"] // 9 + 1
    command = [script, "train", f"resume={run}", f"trainer.max_epochs={more}"]
    done = subprocess.run(command, capture_output=True, check=False, **where)
    assert done.returncode == 0, done.stderr
    assert state(run)["global_step"] == more * 9


@pytest.mark.slow
def test_one_tracker_looks_on_at_two_processes(fsr, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    outcome = fsr(
        "train", *tiny, *TWO, "logger=tensorboard", "trainer.max_epochs=1", f"hydra.run.dir={tmp_path / 'run'}"
    )
    assert outcome.code == 0, outcome.err
    events = [path.read_bytes() for path in sorted(tmp_path.glob("run/tensorboard/version_*/events*"))]
    # the first rank tells of training, and the process that started the ranks of what came after
    assert [b"train/loss" in event for event in events] == [True, False]
    assert [b"test/pgd20/robust_acc" in event for event in events] == [False, True]


@pytest.mark.slow
def test_a_wrong_input_in_two_processes_gets_one_line(fsr, tiny, tmp_path, capfd):
    outcome = fsr("train", *tiny, *TWO, "defense=fsr", "defense.at=blok2", f"hydra.run.dir={tmp_path / 'run'}")
    assert "block2" in outcome.refusal()
    assert "Traceback" not in capfd.readouterr().err
