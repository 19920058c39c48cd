import threading

import pytest

from fsr_lab.model.tape import Tape, current, recording


def test_a_tape_is_open_within_its_block_alone():
    assert current() is None
    tape = Tape()
    with recording(tape) as opened:
        assert opened is tape
        assert current() is tape
    assert current() is None


def test_an_exception_closes_it():
    with pytest.raises(ArithmeticError), recording(Tape()):
        raise ArithmeticError
    assert current() is None


def test_tapes_do_not_nest():
    outer = Tape()
    with recording(outer):
        with pytest.raises(RuntimeError, match="already running in this thread"), recording(Tape()):
            raise AssertionError("the block must not run")
        assert current() is outer
    assert current() is None


def test_each_thread_has_its_own():
    seen = []
    with recording(Tape()):
        thread = threading.Thread(target=lambda: seen.append(current()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_tapes_share_nothing():
    first, second = Tape(), Tape()
    first.aux["layer4"] = {}
    assert second.aux == {}
    assert first.want_aux
    assert first.targets is None
