"""Where metrics go: CSV unless asked, TensorBoard and W&B beside it, and never in the way."""

import csv

import pytest

QUICK = ("evaluation=none", "trainer.max_epochs=1")


def metrics(run):
    with (run / "metrics" / "version_0" / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_csv_is_the_default_and_loads_no_tracker(warm, tiny, tmp_path):
    run = tmp_path / "run"
    reply = warm.run("train", *tiny, *QUICK, f"hydra.run.dir={run}")
    assert reply.code == 0, reply.err
    assert metrics(run)
    assert not (run / "tensorboard").exists()
    assert not (run / "wandb").exists()
    assert "lightning.pytorch.loggers.wandb" in reply.modules  # what is looked for would be found
    assert {"wandb", "tensorboard"}.isdisjoint(reply.modules)


@pytest.mark.slow
def test_no_logger_leaves_no_metrics_and_keeps_both_checkpoints(warm, tiny, tmp_path):
    run = tmp_path / "run"
    reply = warm.run("train", *tiny, *QUICK, "logger=none", f"hydra.run.dir={run}")
    assert reply.code == 0, reply.err
    assert not (run / "metrics").exists()
    assert sorted(path.stem for path in (run / "checkpoints").iterdir()) == ["best", "last"]


def test_tensorboard_writes_events_beside_the_csv(warm, tiny, tmp_path):
    run = tmp_path / "run"
    reply = warm.run("train", *tiny, *QUICK, "logger=tensorboard", f"hydra.run.dir={run}")
    assert reply.code == 0, reply.err
    (events,) = run.glob("tensorboard/version_*/events.out.tfevents.*")
    assert all(name in events.read_bytes() for name in (b"train/loss", b"val/acc", b"val/robust_acc"))
    assert len([row for row in metrics(run) if row["train/loss"]]) == 9


@pytest.mark.slow
def test_wandb_offline_needs_no_account_and_makes_a_run_of_every_job(warm, tiny, tmp_path):
    home = {name: str(tmp_path / "home") for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "NETRC")}
    account = {"WANDB_API_KEY": "", "WANDB_MODE": "", "WANDB_SILENT": "true"}
    sweep = (f"hydra.sweep.dir={tmp_path / 'sweep'}", "hydra.sweep.subdir=job${seed}")
    reply = warm.run("train", "-m", *tiny, *QUICK, "logger=wandb", "seed=0,1", *sweep, env=home | account)
    assert reply.code == 0, reply.err
    assert "wandb" in reply.modules
    names = []
    for job in ("job0", "job1"):
        (offline,) = (tmp_path / "sweep" / job / "wandb").glob("offline-run-*")
        (journal,) = offline.glob("*.wandb")
        assert journal.stat().st_size > 0
        names.append(journal.name)
        assert len([row for row in metrics(tmp_path / "sweep" / job) if row["train/loss"]]) == 9
    assert len(set(names)) == 2
