"""What a sweep costs beside its jobs, and whether its index is right however often it is killed.

    python experiments/scale/sweep.py overhead [--rounds 5]      # an idle machine
    python experiments/scale/sweep.py survival [--jobs 500] [--pause 5 60]
    python experiments/scale/sweep.py index [--jobs 100 1000 4000]

Each writes its part of experiments/scale/measured.json; `python experiments/scale/page.py` makes the page of it.
"""

import argparse
import contextlib
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fsr_lab.core.files import write_atomically, write_text
from fsr_lab.core.provenance import Provenance
from fsr_lab.sweep.index import current, refresh
from fsr_lab.sweep.job import FINISHED, RUNNING, Job

HERE = Path(__file__).parent
FSR = (sys.executable, "-m", "fsr_lab", "train")
POOL = ("-m", "launcher=joblib_gpus")
TRIVIAL = ("dataset=toy", "model=tiny_cnn", "strategy=natural", "evaluation=none", "trainer=cpu")
DRY = (*TRIVIAL, "trainer.fast_dev_run=true")
ONE_EPOCH = (*TRIVIAL, "trainer.max_epochs=1", "dataset.val_size=0")
CHECKPOINT_BYTES = 94_000_000
"""Of a ResNet-18 with FSR: float32 weights and momentum."""
STATES = {"queued", "running", "finished", "failed", "interrupted"}


def seconds(*words: str) -> float:
    """Return how long a command line took that did what it should."""
    start = time.perf_counter()
    done = subprocess.run([*FSR, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed: {done.stderr[-2000:]}")
    return time.perf_counter() - start


def overhead(folder: Path, rounds: int) -> dict[str, Any]:
    """Time one dry run by itself, as a sweep of one job, and as one of nine, one after another, in turns."""
    found: dict[str, list[float]] = {"alone": [], "one": [], "nine": []}
    seconds(*DRY, f"hydra.run.dir={folder}/warm")  # the data set is prepared once
    for number in range(rounds):
        found["alone"].append(seconds(*DRY, f"hydra.run.dir={folder}/alone{number}"))
        found["one"].append(seconds(*POOL, *DRY, "seed=0", f"hydra.sweep.dir={folder}/one{number}"))
        nine = ("seed=range(9)", "hydra.launcher.n_jobs=1", f"hydra.sweep.dir={folder}/nine{number}")
        found["nine"].append(seconds(*POOL, *DRY, *nine))
    return found


def survival(folder: Path, jobs: int, pause: tuple[float, float], seed: int) -> dict[str, Any]:
    """Run a sweep under random kills until every job has finished, looking at its index all the while.

    Args:
        folder: for all that is written.
        jobs: how many.
        pause: shortest and longest seconds between two looks, each of which kills something that runs.
        seed: of the pauses and kills.

    Raises:
        RuntimeError: the index is wrong, or the sweep ended by itself without its jobs.
    """
    draw = random.Random(seed)
    sweep, log = folder / "sweep", folder / "log"
    command = [*FSR, *POOL, *ONE_EPOCH, f"seed=range({jobs})", "retry=true", f"hydra.sweep.dir={sweep}"]
    looks, starts, kills, seen = 0, 0, Counter[str](), set[str]()
    begin = time.perf_counter()
    while len(seen) < jobs:
        starts += 1
        before = kills.total()
        with (
            log.open("w") as out,
            subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True) as run,
        ):
            while wait(run, draw.uniform(*pause)):
                looks += 1
                check(sweep, jobs, seen)
                found = [current(path.parent) for path in sweep.glob("*/job.json")]
                # whose process lives: the number of one that does not may be another program's by now
                running = [job for job in found if job is not None and job.state == RUNNING]
                if draw.random() < 0.1:
                    os.killpg(run.pid, signal.SIGKILL)  # the power fails
                    kills["all processes"] += 1
                    run.wait()
                elif running:
                    end(draw.choice(running).where[0])
                    kills["a job's process"] += 1
        check(sweep, jobs, seen)
        if run.returncode and kills.total() == before:
            raise RuntimeError(f"the sweep ended with {run.returncode}: {log.read_text()[-2000:]}")
    took = time.perf_counter() - begin
    truth = {
        path.parent.name for path in sweep.glob("*/status.json") if json.loads(path.read_text())["state"] == FINISHED
    }
    if len(truth) != jobs or truth != seen:
        raise RuntimeError(f"{len(truth)} of {jobs} jobs finished, the index says {len(seen)}")
    return {"jobs": jobs, "kills": dict(kills), "starts": starts, "looks": looks, "seconds": took, "seed": seed}


def wait(run: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait so long, and tell whether a process still runs."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        run.wait(seconds)
    return run.poll() is None


def check(sweep: Path, jobs: int, seen: set[str]) -> None:
    """Hold the index against the directories: whole, no job twice or lost, and what was finished stays so."""
    if not (sweep / "index.csv").is_file():
        return
    with open(sweep / "index.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    names = [row["directory"] for row in rows]
    if len(set(names)) != len(names) or len(names) != jobs or not {row["state"] for row in rows} <= STATES:
        raise RuntimeError(f"the index is wrong: {len(names)} rows, {len(set(names))} directories")
    finished = {row["directory"] for row in rows if row["state"] == FINISHED}
    for name in finished - seen:
        if json.loads((sweep / name / "status.json").read_text())["state"] != FINISHED:
            raise RuntimeError(f"the index calls {name} finished, which it is not")
    if seen - finished:
        raise RuntimeError(f"the index has lost {sorted(seen - finished)[0]}")
    seen |= finished


def end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def index(folder: Path, sizes: list[int]) -> dict[str, Any]:
    """Time the index of so many jobs written anew, which every job does twice, and a checkpoint written."""
    found = {}
    for size in sizes:
        sweep = folder / f"of_{size}"
        for number in range(size):
            words = (f"seed={number}", "defense=fsr", f"defense.module.tau={number / size}")
            Job(number=number, overrides=words, state=FINISHED, results={"val/robust_acc_best": 0.5}).write(
                sweep / words[0]
            )
        refresh(sweep, search=True)
        found[str(size)] = median(partial(refresh, sweep))
    block = os.urandom(CHECKPOINT_BYTES)
    took = median(partial(write_atomically, folder / "checkpoint", lambda stream: stream.write(block)))
    return {"seconds": found, "disk_mb_per_second": CHECKPOINT_BYTES / 1e6 / took}


def median(work: Callable[[], object]) -> float:
    """Return the median seconds of five times."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return sorted(times)[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("overhead").add_argument("--rounds", type=int, default=5)
    of_survival = parts.add_parser("survival")
    of_survival.add_argument("--jobs", type=int, default=500)
    of_survival.add_argument("--pause", type=float, nargs=2, default=[5, 60])
    of_survival.add_argument("--seed", type=int, default=0)
    parts.add_parser("index").add_argument("--jobs", type=int, nargs="+", default=[100, 1000, 4000])
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ["FSR_DATA"] = str(folder / "data")
        if options.part == "overhead":
            found = overhead(folder, options.rounds)
        elif options.part == "survival":
            found = survival(folder, options.jobs, tuple(options.pause), options.seed)
        else:
            found = index(folder, options.jobs)
    path = HERE / "measured.json"
    measured = json.loads(path.read_text()) if path.is_file() else {}
    about = Provenance.collect(command=f"python experiments/scale/sweep.py {' '.join(sys.argv[1:])}", seed=0, hashes={})
    measured[options.part] = {"found": found, "provenance": about.as_dict()}
    write_text(path, json.dumps(measured, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
