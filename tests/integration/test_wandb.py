"""What W&B gets, read back from its own journal; no account, no server, or one that never answers."""

import json
import os
import socket
import subprocess
import sys

import pytest
from wandb_journal import merged, of_kind, records

pytestmark = pytest.mark.slow

QUICK = ("strategy=at", "defense=fsr", "defense.module.width=4", "test_samples=20", "logger=wandb")


@pytest.fixture
def nobody(tmp_path):
    """Return the environment of a user whom W&B does not know."""
    home = {name: str(tmp_path / "home") for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "NETRC")}
    return home | {"WANDB_API_KEY": "", "WANDB_MODE": ""}


def journal(run):
    (folder,) = (run / "wandb").glob("offline-run-*")
    return records(folder)


def test_a_sweep_offline_leaves_a_whole_run_of_every_job(warm, tiny, tmp_path, nobody):
    sweep = (f"hydra.sweep.dir={tmp_path / 'sweep'}", "hydra.sweep.subdir=job${seed}", "name=mine")
    reply = warm.run("train", "-m", *tiny, *QUICK, "seed=0,1", "test_checkpoints=[last,best]", *sweep, env=nobody)
    assert reply.code == 0, reply.err
    assert "tracker '" not in reply.err
    ids = set()
    for seed in (0, 1):
        run = tmp_path / "sweep" / f"job{seed}"
        found = journal(run)
        (about,) = of_kind(found, "run")
        ids.add(about.run_id)
        assert about.run_id == (run / "wandb_id").read_text().strip()
        assert (about.run_group, about.job_type, about.display_name) == ("mine", "train", f"at+fsr-seed{seed}")
        assert set(about.tags) == {"toy", "at", "fsr"}
        assert (about.project, of_kind(found, "exit")[-1].exit_code) == ("fsr-lab", 0)

        config = merged([update for part in of_kind(found, "config") for update in part.update])
        assert config["seed"] == seed
        assert config["defense"]["module"]["width"] == 4  # nested, as it was composed
        assert config["strategy"]["attack"]["threat"]["eps"] == config["threat"]["eps"]

        history = [merged(part.item) for part in of_kind(found, "history")]
        named = {key for entry in history for key in entry}
        assert {"train/loss", "train/ce", "train/block2/sep", "val/acc", "val/robust_acc"} <= named
        spread = [entry for entry in history if "mask/block2/values" in entry]
        assert [entry["trainer/global_step"] for entry in spread] == [8, 17]
        assert all(len(entry["mask/block2/bins"]) == len(entry["mask/block2/values"]) + 1 for entry in spread)
        assert all(sum(entry["mask/block2/values"]) > 0 for entry in spread)

        summary = merged([update for part in of_kind(found, "summary") for update in part.update])
        for name in ("test/acc", "test/fgsm/robust_acc", "test/best/pgd20/robust_acc", "val/robust_acc_best"):
            assert 0 <= summary[name] <= 1
        assert summary["samples/clean/count"] == summary["samples/adversarial/count"] == 8
        assert len(summary["samples/clean/captions"]) == 8

        (offline,) = (run / "wandb").glob("offline-run-*")
        rows = json.loads((offline / "files" / summary["test/robust_accuracies/path"]).read_text())
        assert rows["columns"] == ["network", "threat", "attack", "n", "correct", "accuracy"]
        value = {(row[0], row[2]): row[5] for row in rows["data"]}
        assert value["at+fsr (last)", "fgsm"] == summary["test/fgsm/robust_acc"]
        assert {name for name, _ in value} == {"at+fsr (last)", "at+fsr (best)"}

        artifacts = {part.type: part for part in of_kind(found, "artifact")}
        files = {entry.path for entry in artifacts["evaluation-record"].manifest.contents}
        assert files == {"last.json", "last.npz", "best.json", "best.npz"}
    assert len(ids) == 2


def test_a_resumed_run_is_the_same_run_to_wandb(warm, tiny, tmp_path, nobody):
    run = tmp_path / "run"
    argv = ("train", *tiny, *QUICK, "evaluation=none", f"hydra.run.dir={run}")
    assert warm.run(*argv, env=nobody, stops=[("train", 12, "SIGTERM")]).code == 130
    reply = warm.run(*argv, env=nobody)
    assert reply.code == 0, reply.err
    journals = [records(folder) for folder in sorted((run / "wandb").glob("offline-run-*"))]
    assert len(journals) == 2  # offline W&B never reopens a journal; both carry the id, and sync to one run
    assert len({of_kind(found, "run")[0].run_id for found in journals}) == 1
    assert [of_kind(found, "exit")[-1].exit_code for found in journals] == [1, 0]
    steps = [[merged(part.item)["trainer/global_step"] for part in of_kind(found, "history")] for found in journals]
    assert steps[1][0] >= 12 > steps[0][0]


def test_an_evaluation_is_a_run_of_its_own_in_the_group_of_its_network(warm, tiny, tmp_path, nobody):
    run, other = tmp_path / "run", tmp_path / "other"
    plain = [word for word in QUICK if word != "logger=wandb"]
    trained = warm.run("train", *tiny, *plain, "evaluation=none", "name=mine", f"hydra.run.dir={run}")
    assert trained.code == 0, trained.err
    argv = ("evaluate", f"run={run}", "attack=[fgsm]", "test_samples=20", "logger=wandb", f"hydra.run.dir={other}")
    reply = warm.run(*argv, env=nobody)
    assert reply.code == 0, reply.err
    found = journal(other)
    (about,) = of_kind(found, "run")
    assert (about.run_group, about.job_type) == ("mine", "evaluate")
    summary = merged([update for part in of_kind(found, "summary") for update in part.update])
    assert {"test/acc", "test/fgsm/robust_acc"} <= set(summary)
    artifacts = {part.type: part for part in of_kind(found, "artifact")}
    assert {entry.path for entry in artifacts["evaluation-record"].manifest.contents} == {
        "evaluation.json", "evaluation.npz",
    }  # fmt: skip


def test_a_server_that_never_answers_holds_up_nothing(tiny, tmp_path, nobody, data):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = f"http://127.0.0.1:{silent.getsockname()[1]}"
        # with a key it goes online; a whole process, as what W&B does at its exit is part of it
        done = subprocess.run(
            [sys.executable, "-m", "fsr_lab", "train", *tiny, "logger=wandb", "evaluation=none",
             "+logger.wandb.settings.init_timeout=100000", "trackers.patience=1", f"hydra.run.dir={tmp_path / 'run'}"],
            env=os.environ | nobody | {
                "WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": server, "FSR_DATA": str(data), "OMP_NUM_THREADS": "1",
            },
            cwd=tmp_path, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("tracker ")]
    assert told == ["tracker 'wandb' does not end, and is left behind; the run is not affected"]
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
