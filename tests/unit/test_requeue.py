"""How a job of Slurm whose time is up is queued again."""

import os
import signal

import pytest

from fsr_lab.sweep import requeue


@pytest.fixture
def of_submitit(monkeypatch):
    """Return the function that puts this process into a job of submitit's: (its handler)."""
    before = signal.getsignal(requeue.TIME_IS_UP)

    def put(handler):
        monkeypatch.setenv("SUBMITIT_FOLDER", "somewhere")
        signal.signal(requeue.TIME_IS_UP, handler)

    yield put
    signal.signal(requeue.TIME_IS_UP, before)


def test_a_job_is_noted_before_it_is_queued_again_once(of_submitit):
    done = []

    def again(number, frame):
        done.append(signal.Signals(number).name)
        os.kill(os.getpid(), requeue.TIME_IS_UP)  # Slurm's next, while this one is answered
        raise SystemExit(-1)

    of_submitit(again)
    with requeue.requeueing(lambda: done.append("noted")) as answers, pytest.raises(SystemExit):
        os.kill(os.getpid(), requeue.TIME_IS_UP)
    assert (done, answers.is_done) == (["noted", "SIGUSR2"], True)
    assert signal.getsignal(requeue.TIME_IS_UP) is again


def test_a_job_out_of_time_too_often_says_what_to_give(of_submitit):
    def refuse(number, frame):
        raise AssertionError("timed-out too many times.")

    of_submitit(refuse)
    said = r"too many times\. retry=true goes on with it; give more launcher\.resubmissions"
    with requeue.requeueing(lambda: None) as answers, pytest.raises(RuntimeError, match=said):
        os.kill(os.getpid(), requeue.TIME_IS_UP)
    assert not answers.is_done


def test_outside_submitit_nothing_listens(of_submitit, monkeypatch):
    of_submitit(lambda number, frame: None)
    monkeypatch.delenv("SUBMITIT_FOLDER")
    with requeue.requeueing(lambda: None) as answers:
        assert answers is None
