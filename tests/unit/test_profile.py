import pytest

from fsr_lab.engine import profile
from fsr_lab.engine.profile import StepProfiler

FETCH = "[_TrainingEpochLoop].train_dataloader_next"
HOOK = "[Callback]Any.on_train_batch_end"


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on only when told to."""
    now = [0.0]
    monkeypatch.setattr(profile, "_settled_time", lambda: now[0])

    def tick(seconds):
        now[0] += seconds

    return tick


def act(profiler, clock, action, seconds):
    profiler.start(action)
    clock(seconds)
    profiler.stop(action)


def step(profiler, clock, *, crafting, rest=0.5):
    act(profiler, clock, FETCH, 0.1)
    clock(0.03)  # Lightning's own
    profiler.start("run_training_batch")
    act(profiler, clock, "crafting", crafting)
    clock(rest)  # forward, backward, optimiser
    act(profiler, clock, "logging", 0.02)
    profiler.stop("run_training_batch")
    act(profiler, clock, HOOK, 0.05)


def test_each_part_pays_its_own(clock):
    profiler = StepProfiler(warmup=1)
    step(profiler, clock, crafting=50.0)  # kernels are chosen: left out
    for _ in range(4):
        step(profiler, clock, crafting=2.0)
    profiler.start(FETCH)  # which ends the last step
    assert profiler.steps == 4
    assert profiler.shares() == pytest.approx(
        {"crafting": 2000, "training pass": 500, "data": 100, "logging": 70, "Lightning": 30}
    )
    assert "a training step takes 2700.0 ms (mean of 4)" in profiler.summary()
    assert "74.1 %" in profiler.summary()


def test_no_step_crosses_an_epochs_end(clock):
    profiler = StepProfiler(warmup=0)
    for _ in range(2):
        profiler.start("run_training_epoch")
        for _ in range(3):
            step(profiler, clock, crafting=2.0)
        clock(1000.0)  # validation
        profiler.stop("run_training_epoch")
    assert profiler.steps == 4
    assert sum(profiler.shares().values()) == pytest.approx(2700)


def test_a_run_too_short_says_so(clock):
    profiler = StepProfiler(warmup=3)
    step(profiler, clock, crafting=2.0)
    assert profiler.shares() == {}
    assert profiler.summary() == "no step was profiled: train for more than 4 steps"
