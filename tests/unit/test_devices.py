"""Leases of GPUs: each to one process, and free again when that dies. No GPU is needed: a lease is a name."""

import signal
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from fsr_lab.sweep import devices

LEASE = """
import sys
from pathlib import Path
from fsr_lab.sweep.devices import lease

print(*lease(sys.argv[3].split(","), int(sys.argv[2]), Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def take(tmp_path):
    """Return the function that lets a process lease devices: (count, devices)."""
    started = []

    def started_process(count, names="4,7"):
        process = subprocess.Popen(
            [sys.executable, "-c", LEASE, tmp_path, str(count), names],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield started_process
    for process in started:
        process.kill()
        process.communicate()


def test_no_device_is_leased_twice_and_death_frees_it(take):
    one, other = take(1), take(1)
    mine, theirs = one.stdout.readline().split(), other.stdout.readline().split()
    assert sorted(mine + theirs) == ["4", "7"]
    third = take(1)
    assert third.stderr.readline() == "waiting for 1 of the GPUs 4, 7\n"
    one.send_signal(signal.SIGKILL)
    assert third.stdout.readline().split() == mine


def test_two_that_need_both_do_not_wait_for_each_other(take):
    one, other = take(2), take(2)
    winner, loser = (one, other) if one.poll() is None and first_line(one, other) == "one" else (other, one)
    winner.send_signal(signal.SIGKILL)
    assert sorted(loser.stdout.readline().split()) == ["4", "7"]


def first_line(one, other):
    """Tell which of two processes got the lease: the other says that it waits."""
    import select

    ready, _, _ = select.select([one.stdout, other.stdout], [], [])
    return "one" if ready[0] is one.stdout else "other"


def settings(accelerator="auto", gpus=1, cores=1, devices_wanted=1):
    return OmegaConf.create({
        "launcher": {"gpus": gpus, "cores": cores},
        "trainer": {"accelerator": accelerator, "devices": devices_wanted},
    })  # fmt: skip


def test_a_job_sees_the_gpus_that_it_leased_and_keeps_them(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "_LEASED", [])
    monkeypatch.setattr(devices, "lease_folder", lambda: tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7,9")
    devices.settle(settings("gpu", gpus=2))
    assert devices.visible_gpus() == ("5", "7")
    devices.settle(settings("gpu", gpus=2))  # the next job of this worker
    assert devices.visible_gpus() == ("5", "7")
    for lock in devices._LEASED:
        lock.release()


def test_as_many_jobs_as_there_is_room_for(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4")
    assert devices.slots(settings("gpu")) == devices.slots(settings("auto")) == 5
    assert devices.slots(settings("gpu", gpus=2)) == 2
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(7)))
    assert devices.slots(settings("cpu", cores=3)) == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.slots(settings("auto", cores=7)) == 1


@pytest.mark.parametrize(
    ("cfg", "said"),
    [
        (settings("gpu", gpus=3), "a job asks for 3 GPUs, and this machine has 2; give launcher.gpus"),
        (settings("cpu", cores=3), "a job asks for 3 cores, and this machine has 2; give launcher.cores"),
        (settings("cpu", cores=0), "expected launcher.cores to be a whole number of at least 1, got 0"),
        (settings("gpu", gpus="all"), "expected launcher.gpus to be a whole number of at least 1, got all"),
    ],
)
def test_more_than_there_is_is_refused(monkeypatch, cfg, said):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    with pytest.raises(ValueError, match=said):
        devices.slots(cfg)


@pytest.mark.parametrize(
    ("options", "accelerator", "wanted", "said"),
    [
        ({}, "gpu", 3, "a job asks for 3 GPUs, and this machine has 2; give trainer.devices"),
        ({"gpus": None}, "gpu", 1, "computes on 1 GPUs, and its launcher gives it 0"),
        ({"gpus": 4}, "auto", 2, "computes on 2 GPUs, and its launcher gives it 4"),
        ({"gpus": 1}, "gpu", 2, "let trainer.devices and launcher.gpus agree"),
    ],
)
def test_a_launcher_that_gives_other_gpus_than_a_job_computes_on_is_refused(
    monkeypatch, options, accelerator, wanted, said
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    trainer = {"accelerator": accelerator, "devices": wanted}
    with pytest.raises(ValueError, match=said):
        devices.check_gpus(OmegaConf.create({"launcher": options, "trainer": trainer}))


@pytest.mark.parametrize(
    ("options", "accelerator", "wanted"),
    [({}, "gpu", 2), ({"gpus": 0.5}, "gpu", 1), ({"gpus": None}, "auto", 2), ({"gpus": 2}, "cpu", 1)],
)
def test_a_launcher_that_gives_what_a_job_computes_on_is_not(monkeypatch, options, accelerator, wanted):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    trainer = {"accelerator": accelerator, "devices": wanted}
    devices.check_gpus(OmegaConf.create({"launcher": options, "trainer": trainer}))
    devices.check_gpus(OmegaConf.create({"launcher": options}))  # of a verb that trains nothing
