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
    assert all(name in events.read_bytes() for name in (b"test/acc", b"val/robust_acc_best", b"robust_accuracies"))
    assert len([row for row in metrics(run) if row["train/loss"]]) == 9
