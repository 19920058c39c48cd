"""Who works in a run directory: one process, which others are told of, and nobody once it is gone."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fsr_lab.engine import lock
from fsr_lab.engine.lock import HeldRunError, held, is_held

HOLD = """
import sys
from pathlib import Path
from fsr_lab.engine.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Return a process that holds tmp_path until its input ends."""
    command = [sys.executable, "-c", HOLD, tmp_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_run_is_held_for_the_block_and_free_after_it(tmp_path):
    run = tmp_path / "runs" / "one"
    assert not is_held(run)
    assert not run.exists()
    with held(run):
        assert is_held(run)
        assert not is_held(tmp_path / "runs")
    assert not is_held(run)
    with pytest.raises(ZeroDivisionError), held(run):
        raise ZeroDivisionError
    assert not is_held(run)
    with held(run):
        pass


def test_the_process_that_holds_a_run_may_take_it_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with held(tmp_path):
        with held(Path()):
            assert is_held(tmp_path)
        assert is_held(tmp_path)
        assert (tmp_path / lock.HOLDER).exists()
        with ThreadPoolExecutor(1) as other:
            assert other.submit(is_held, tmp_path).result()
    assert not is_held(tmp_path)
    assert not (tmp_path / lock.HOLDER).exists()


def test_a_second_process_is_refused_in_one_line_that_names_the_first(holder, tmp_path):
    with pytest.raises(HeldRunError) as refusal, held(tmp_path):
        pass
    text = str(refusal.value)
    assert f"process {holder.pid} on {socket.gethostname()} since 20" in text
    assert str(tmp_path) in text
    assert "\n" not in text
    assert is_held(tmp_path)
    holder.stdin.close()
    assert holder.wait() == 0
    with held(tmp_path):
        assert is_held(tmp_path)


def test_a_killed_process_holds_nothing(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / lock.HOLDER).exists()  # its note is all that is left
    assert not is_held(tmp_path)
    with held(tmp_path):
        assert f'"pid": {os.getpid()}' in (tmp_path / lock.HOLDER).read_text()


def test_who_only_looks_refuses_nobody(tmp_path, monkeypatch):
    with held(tmp_path):
        pass
    looking = os.open(tmp_path / lock.LOCK, os.O_RDWR)
    fcntl.flock(looking, fcntl.LOCK_EX)
    acquire = lock.FileLock.acquire

    def released_meanwhile(self, *args, **kwargs):
        with ThreadPoolExecutor(1) as waiting:
            taken = waiting.submit(acquire, self, *args, **kwargs)
            with pytest.raises(TimeoutError):
                taken.result(timeout=0.1)
            os.close(looking)
            return taken.result()

    monkeypatch.setattr(lock.FileLock, "acquire", released_meanwhile)
    with held(tmp_path):
        pass


def test_a_file_system_without_locks_is_said_and_does_not_hinder(tmp_path, monkeypatch, caplog):
    def missing(fd, kind):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", missing)
    with held(tmp_path):
        assert not is_held(tmp_path)
    (line,) = caplog.messages
    assert "without locks" in line
