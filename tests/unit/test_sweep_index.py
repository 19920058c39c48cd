"""A sweep's index: what the jobs' directories say, whoever writes, and whoever is killed."""

import csv
import errno
import io
import signal
import subprocess
import sys

import pytest
from rich.console import Console

from fsr_lab.engine.lock import held, is_held
from fsr_lab.report.sweep import axes_of, read_sweep
from fsr_lab.sweep.index import refresh
from fsr_lab.sweep.job import FAILED, FINISHED, Job, last_lines
from fsr_lab.sweep.plan import LONGEST_NAME, job_name

HOLD = """
import sys
from pathlib import Path
from fsr_lab.engine.lock import held
from fsr_lab.sweep.job import Job

run = Path(sys.argv[1])
with held(run):
    Job.read(run).begun().write(run)
    print("held", flush=True)
    sys.stdin.read()
"""

WRITE = """
import sys
from pathlib import Path
from fsr_lab.sweep.index import refresh
from fsr_lab.sweep.job import Job

sweep, first = Path(sys.argv[1]), int(sys.argv[2])
for number in range(first, first + 10):
    job = Job(number=number, overrides=(f"seed={number}",))
    job.begun().over("finished").write(sweep / f"seed={number}")
    refresh(sweep, [sweep / f"seed={number}"])
"""


def rows(sweep):
    with (sweep / "index.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def queued(sweep, number, *overrides):
    run = sweep / ",".join(overrides).replace("/", "_")
    Job(number=number, overrides=overrides).write(run)
    return run


def test_a_row_says_what_the_jobs_directory_does(tmp_path):
    first, second = queued(tmp_path, 0, "seed=0", "threat.eps=4/255"), queued(tmp_path, 1, "seed=1", "+extra=a b")
    begun = Job.read(second).begun()
    begun.over(FAILED, code=2, error='no "layer5", sorry').write(second)
    refresh(tmp_path, [second, first])
    one, other = rows(tmp_path)
    assert (one["job"], one["directory"], one["state"], one["started"], one["seconds"]) == (
        "0", "seed=0,threat.eps=4_255", "queued", "", "",
    )  # fmt: skip
    assert (one["seed"], one["threat.eps"], one["extra"]) == ("0", "4/255", "")
    assert (other["state"], other["error"], other["extra"]) == ("failed", 'no "layer5", sorry', "a b")
    assert other["started"] == begun.started
    assert float(other["seconds"]) >= 0


@pytest.fixture
def running(tmp_path):
    """Return (sweep, a job's directory, the process that runs it)."""
    run = queued(tmp_path, 0, "seed=0")
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, run], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield tmp_path, run, process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_a_running_job_is_told_from_a_killed_one(running):
    sweep, run, process = running
    refresh(sweep, [run])
    assert [row["state"] for row in rows(sweep)] == ["running"]
    assert is_held(run)
    with pytest.raises(RuntimeError, match=f"in use by process {process.pid} on "), held(run):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not is_held(run)
    refresh(sweep)
    assert [(row["state"], row["error"]) for row in rows(sweep)] == [("interrupted", "its process was killed")]
    assert Job.read(run).state == "running"  # what it last said; the directory is not rewritten by who looks
    with held(run), held(run):  # and is free for the next, who may take it twice
        assert is_held(run)


def test_writers_of_one_index_lose_no_row_and_no_reader_sees_half_of_it(tmp_path):
    writers = [subprocess.Popen([sys.executable, "-c", WRITE, tmp_path, str(10 * first)]) for first in range(3)]
    while any(writer.poll() is None for writer in writers):
        if (tmp_path / "index.csv").exists():
            assert {row["state"] for row in rows(tmp_path)} == {"finished"}
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert [int(row["seed"]) for row in rows(tmp_path)] == list(range(30))


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_has_an_index_all_the_same(tmp_path, monkeypatch, number):
    def missing(fd, kind):
        raise OSError(number, "no locks here")

    monkeypatch.setattr("fcntl.flock", missing)
    for seed in (0, 1):
        refresh(tmp_path, [queued(tmp_path, seed, f"seed={seed}")])
    assert [row["seed"] for row in rows(tmp_path)] == ["0", "1"]


def test_a_lost_index_is_found_again_in_the_directories(tmp_path):
    nested = tmp_path / "2_at" / "seed=0"
    Job(number=3, overrides=("seed=0",)).write(nested)
    refresh(tmp_path, [nested])
    before = (tmp_path / "index.csv").read_bytes()
    (tmp_path / "index.csv").unlink()
    refresh(tmp_path)
    assert (tmp_path / "index.csv").read_bytes() == before
    later = queued(tmp_path, 1, "seed=5")  # which only a search finds
    refresh(tmp_path)
    assert (tmp_path / "index.csv").read_bytes() == before
    refresh(tmp_path, search=True)
    assert [row["directory"] for row in rows(tmp_path)] == [later.name, "2_at/seed=0"]


def test_a_deleted_job_leaves_the_index(tmp_path):
    first, second = queued(tmp_path, 0, "seed=0"), queued(tmp_path, 1, "seed=1")
    refresh(tmp_path, [first, second])
    (first / "job.json").unlink()
    refresh(tmp_path)
    assert [row["seed"] for row in rows(tmp_path)] == ["1"]


def test_names_are_whole_unique_and_fit_for_a_file_system():
    assert job_name(["seed=0", "defense=none"], ["seed"], []) == "defense=none,seed=0"
    assert job_name(["threat.eps=4/255"], [], []) == "threat.eps=4_255"
    assert job_name([], [], []) == job_name(["name=x"], [], ["name"]) == "defaults"
    # what is swept is named, even where names are spared it
    assert job_name(["seed=0", "experiment=a/b"], ["experiment"], ["experiment"]) == "experiment=a_b,seed=0"
    assert job_name(["seed=0", "experiment=a/b"], ["seed"], ["experiment"]) == "seed=0"
    where = ["launcher=slurm", "launcher.cpus=4", "+logger.wandb.tags=[a]", "launcherx=1"]
    assert job_name(where, [], ["launcher", "logger"]) == "launcherx=1"
    long = [f"a.very.long.key.of.a.config.{number}=ä" for number in range(30)]
    names = [job_name([*long, f"seed={seed}"], [], []) for seed in range(100)]
    assert len(set(names)) == 100
    assert {len(name.encode()) <= LONGEST_NAME for name in names} == {True}
    assert names == [job_name([*long, f"seed={seed}"], [], []) for seed in range(100)]
    assert job_name(["x" * LONGEST_NAME], [], []) == "x" * LONGEST_NAME


def test_the_last_lines_of_a_log_are_those_with_something_in_them(tmp_path):
    assert last_lines(tmp_path) == []
    (tmp_path / "job.log").write_text("one\ntwo\n\nthree\nfsr: what is told anyway\n\n")
    assert last_lines(tmp_path, 2) == ["two", "three"]


def test_a_jobs_file_is_read_as_it_was_written(tmp_path):
    job = Job(number=3, overrides=("seed=1",)).begun().over(FINISHED, results={"test/natural_last": 0.5})
    job.write(tmp_path)
    assert Job.read(tmp_path) == job
    assert Job.read(tmp_path / "elsewhere") is None


def swept(tmp_path, *grids):
    for number, overrides in enumerate(grids):
        job = Job(number=number, overrides=overrides).begun()
        job.over(FINISHED, results={"test/robust_last": number / 100}).write(tmp_path / f"{number}")
    refresh(tmp_path, search=True)
    return read_sweep(tmp_path)


def test_only_what_differs_is_a_column_and_only_numbers_are_axes(tmp_path):
    sweep = swept(tmp_path, ("a=1", "b=2", "seed=0"), ("a=1", "b=8/255", "seed=1"))
    assert sweep.swept == ("b", "seed")
    assert axes_of(sweep) == ("b",)
    assert sweep.headings == ("job", "b", "seed", "state", "seconds", "test robust last %", "error")
    assert sweep.cells(sweep.rows[1])[:4] == ["1", "8/255", "1", "finished"]
    assert sweep.cells(sweep.rows[1])[5] == "1.00"
    assert sweep.summary == "2 jobs: 2 finished"


def test_a_terminals_table_shows_brackets_as_they_are(tmp_path):
    sweep = swept(tmp_path, ("defense.at=layer3",), ("defense.at=[layer3,layer4]",))
    stream = io.StringIO()
    Console(file=stream, width=120).print(sweep.rich())
    assert "[layer3,layer4]" in stream.getvalue()


@pytest.mark.parametrize(
    ("grids", "axes"),
    [
        ([("seed=0",), ("seed=1",)], ("seed",)),
        ([("a=1", "b=1"), ("a=1", "b=2"), ("a=2", "b=1")], ("a", "b")),
        ([("a=1", "defense=none"), ("a=2", "defense=fsr")], ()),
        ([("a=1",), ("a=1",)], ()),
    ],
)
def test_axes(tmp_path, grids, axes):
    assert axes_of(swept(tmp_path, *grids)) == axes
