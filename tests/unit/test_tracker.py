"""A tracker passes on what it is told, in order, and whatever becomes of it never reaches who tells it."""

import threading

import pytest
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from fsr_lab.engine.tracker import Tracker, close

LONG = 60.0


class Kept(Logger):
    """Keeps what it is told; `gate` holds it up at the first metrics."""

    name, version = "kept", 0

    def __init__(self, gate=None):
        self.told, self.gate = [], gate

    def log_metrics(self, metrics, step=None):
        if self.gate is not None:
            self.gate.wait()
        self.told.append((dict(metrics), step))

    def log_hyperparams(self, params, *args, **kwargs):
        self.told.append(params)

    def after_save_checkpoint(self, checkpoint_callback):
        self.told.append(checkpoint_callback)

    def finalize(self, status):
        self.told.append(status)


def lines(capsys):
    return capsys.readouterr().err.splitlines()


def test_everything_arrives_in_order_and_the_end_is_last(capsys):
    kept = Kept()
    tracker = Tracker("kept", lambda: kept, end=lambda logger, status: logger.told.append(f"end: {status}"))
    metrics = {"train/loss": 1.0}
    tracker.log_hyperparams({"a": {"b": 1}})
    tracker.log_metrics(metrics, 3)
    metrics["train/loss"] = 2.0  # Lightning reuses its dicts
    tracker.after_save_checkpoint("checkpoint")
    tracker.finalize("success")
    tracker.tell(lambda logger: logger.told.append("more"))
    close([tracker], "failed", LONG)
    assert kept.told == [{"a": {"b": 1}}, ({"train/loss": 1.0}, 3), "checkpoint", "more", "failed", "end: failed"]
    assert lines(capsys) == []


def test_it_is_built_in_its_own_thread_and_only_if_something_is_logged():
    built = []
    tracker = Tracker("kept", lambda: built.append(threading.current_thread()) or Kept())
    other = Tracker("other", lambda: built.append("needless") or Kept())
    tracker.log_metrics({}, 0)
    close([tracker, other], "success", LONG)
    (thread,) = built
    assert thread.daemon
    assert thread is not threading.main_thread()


def raising(kind):
    def act(*args, **kwargs):
        raise kind("of no\n  use")

    return act


@pytest.mark.parametrize("kind", [RuntimeError, SystemExit, KeyboardInterrupt, ModuleNotFoundError])
@pytest.mark.parametrize("where", ["build", "log_metrics", "log_hyperparams", "finalize", "end"])
def test_what_it_raises_is_one_line(where, kind, capsys):
    kept = Kept()
    build, end = lambda: kept, None
    if where == "build":
        build = raising(kind)
    elif where == "end":
        end = raising(kind)
    else:
        setattr(kept, where, raising(kind))
    tracker = Tracker("bad", build, end=end)
    for step in range(3):
        tracker.log_hyperparams({"a": 1})
        tracker.log_metrics({"b": 2.0}, step)
    close([tracker], "success", LONG)
    tracker.log_metrics({"b": 2.0}, 4)
    assert lines(capsys) == [
        f"tracker 'bad' failed and is left out: {kind.__name__}: of no use; the run is not affected"
    ]


def test_one_that_hangs_is_left_behind_and_the_others_end_well(capsys):
    forever, kept = threading.Event(), Kept()
    hangs = [Tracker("build", lambda: forever.wait() or Kept()), Tracker("metrics", lambda: Kept(forever))]
    well = Tracker("well", lambda: kept)
    trackers = [*hangs, well]
    for tracker in trackers:
        tracker.log_metrics({"a": 1.0}, 0)
    close([well], "success", LONG)
    close(hangs, "success", 0.01)
    assert kept.told == [({"a": 1.0}, 0), "success"]
    assert lines(capsys) == [
        f"tracker '{name}' does not end, and is left behind; the run is not affected" for name in ("build", "metrics")
    ]
    forever.set()


def test_one_that_does_not_keep_up_misses_what_is_too_much_and_says_so_once(capsys):
    gate = threading.Event()
    kept = Kept(gate)
    tracker = Tracker("slow", lambda: kept, capacity=5)
    for step in range(100):
        tracker.log_metrics({"a": 1.0}, step)
    gate.set()
    close([tracker], "success", LONG)
    *told, end = kept.told
    assert [step for _, step in told] in (list(range(5)), list(range(6)))  # one may be under way
    assert end == "success"
    assert len(lines(capsys)) == 1


def test_lightning_gets_its_answers_without_asking_the_other(capsys):
    tracker = Tracker("bad", raising(RuntimeError))
    assert (tracker.name, tracker.version) == ("bad", "")
    assert (tracker.save_dir, tracker.log_dir, tracker.root_dir) == (None, None, None)
    assert not hasattr(tracker, "experiment")
    assert lines(capsys) == []


def test_other_ranks_do_nothing(monkeypatch, capsys):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    tracker = Tracker("bad", raising(RuntimeError))
    tracker.log_metrics({}, 0)
    close([tracker], "success", LONG)
    assert lines(capsys) == []
