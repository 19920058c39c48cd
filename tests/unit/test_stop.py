"""Who decides what becomes of a run that is asked to stop."""

import os
import signal
from types import SimpleNamespace

import pytest

from fsr_lab.callback.often import SaveOften
from fsr_lab.callback.stop import SIGNALS, InterruptedRunError, StopCleanly


class Standing(SimpleNamespace):
    """A trainer after a step, which counts what it is told to save."""

    def __init__(self, step=3, **others):
        super().__init__(**{"global_step": step, "world_size": 1, "is_last_batch": False, "saved": []} | others)

    def save_checkpoint(self, path):
        self.saved.append((self.global_step, path.name))


@pytest.fixture
def handlers():
    """Give back whatever handlers a test leaves behind."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


def begin(callback, trainer):
    callback.on_fit_start(trainer, None)
    callback.on_train_start(trainer, None)


def after_a_step(callback, trainer):
    callback.on_train_batch_end(trainer, None, None, None, 0)


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_saves_and_stops(number, handlers):
    stop, trainer = StopCleanly("last.ckpt"), Standing()
    begin(stop, trainer)
    after_a_step(stop, trainer)
    assert trainer.saved == []
    os.kill(os.getpid(), number)
    with pytest.raises(InterruptedRunError, match=f"{number.name} at step 3"):
        after_a_step(stop, trainer)
    assert trainer.saved == [(3, "last.ckpt")]
    assert {each: signal.getsignal(each) for each in SIGNALS} == handlers


def test_a_program_round_the_training_decides_once_the_checkpoint_is_written(handlers):
    stop, trainer, told = StopCleanly("last.ckpt"), Standing(), []
    signal.signal(signal.SIGUSR2, lambda number, frame: told.append((number, list(trainer.saved))))
    begin(stop, trainer)
    for step in (4, 5):
        trainer.global_step = step
        for _ in range(2):  # batch systems repeat themselves
            os.kill(os.getpid(), signal.SIGUSR2)
        after_a_step(stop, trainer)  # the program returns: training goes on, and listens again
    assert told == [(signal.SIGUSR2, [(4, "last.ckpt")]), (signal.SIGUSR2, [(4, "last.ckpt"), (5, "last.ckpt")])]

    def queued_again(number, frame):
        raise SystemExit(3)

    stop.on_train_end(trainer, None)
    signal.signal(signal.SIGUSR2, queued_again)
    begin(stop, trainer)
    os.kill(os.getpid(), signal.SIGUSR2)
    with pytest.raises(SystemExit):
        after_a_step(stop, trainer)


def test_a_rank_saves_however_often_it_is_told_and_when_another_one_is(handlers):
    told, other = StopCleanly("last.ckpt"), StopCleanly("last.ckpt")
    trainer = Standing(strategy=SimpleNamespace(reduce_boolean_decision=lambda asked, all: asked), world_size=2)
    begin(told, trainer)
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1):
        os.kill(os.getpid(), number)
    with pytest.raises(InterruptedRunError, match="SIGTERM at step 3"):
        after_a_step(told, trainer)
    told.on_exception(trainer, None, InterruptedRunError())
    os.kill(os.getpid(), signal.SIGTERM)  # torchrun's own, which the batch system forestalled
    trainer.strategy.reduce_boolean_decision = lambda asked, all: True
    other.on_fit_start(trainer, None)
    with pytest.raises(InterruptedRunError, match="another rank was stopped at step 3"):
        after_a_step(other, trainer)
    assert trainer.saved == [(3, "last.ckpt")] * 2


@pytest.mark.parametrize("settings", [{"steps": 0}, {"steps": -1}, {"minutes": 0}])
def test_a_checkpoint_cannot_be_written_every_nought(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=f"callback.often.{name} above 0"):
        SaveOften("last.ckpt", **settings)


def test_without_steps_or_minutes_nothing_is_saved_within_an_epoch():
    often, trainer = SaveOften("last.ckpt"), Standing()
    often.on_train_start(trainer, None)
    after_a_step(often, trainer)
    assert trainer.saved == []
