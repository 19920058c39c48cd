"""The page of what sweeps cost at scale: measured.json and experiments/speed/bench.json, counted MACs, and arithmetic.

python experiments/scale/page.py
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from fsr_lab.arguments import CONFIGS, config_folder
from fsr_lab.core.files import write_text
from fsr_lab.engine import build
from fsr_lab.evaluation.cost import measure

HERE = Path(__file__).parent
TABLES = ("table1_cifar10", "table1_svhn", "table2_cifar10", "table2_svhn", "table3", "table4", "table6", "figure1")
TRAINING_IMAGES = {"cifar10": 50_000, "svhn": 73_257}
TEST_IMAGES = {"cifar10": 10_000, "svhn": 26_032}
BEYOND = {"natural": 3, "at": 3, "trades": 7, "mart": 6}
"""Forward passes' worth of work in a training step beside the attack: 3 for each forward with its backward, of weights
and activations; TRADES and MART train on the clean images too, and TRADES' attack has one target to work out first."""
PAPER_STEPS = 1 + 20 + 100 + 30
"""Gradients per test image of FGSM, PGD-20, PGD-100 and CW-30."""
CHECKPOINTS = 2  # last and best are attacked
SUSTAINED = 30e12
"""FLOP/s that a GPU is assumed to sustain: an assumption, as none was measured."""
GPUS = (1, 8, 64, 512)
CURES = {
    "data loading": "A core per GPU is what it needs.",
    "checkpoints": "`callback.last.every_n_epochs=10 trainer.check_val_every_n_epoch=10` makes them fewer,\nand "
    "`callback.often.minutes` keeps what a kill can lose as small as before.",
    "the index": "Sweeps under names of their own have an index each.",
}
"""What to do about what saturates first."""
BENCHED = {"AT": ("at", "none"), "AT+FSR": ("at", "fsr"), "TRADES+FSR": ("trades", "fsr")}


class Training(NamedTuple):
    """One row of a table at the paper's scale.

    Attributes:
        name: of the experiment.
        flops: of its training.
        attacked: FLOPs of the paper's protocol on its checkpoints.
        parameters: of its network.
        epochs: how many.
    """

    name: str
    flops: float
    attacked: float
    parameters: int
    epochs: int


def passes(cfg: DictConfig) -> int:
    """Return the forward passes' worth of work per training image; a crafting step is two."""
    steps = cfg.strategy.attack.steps if cfg.strategy.get("attack") else 0
    return 2 * int(steps) + BEYOND[cfg.strategy._target_.split(".")[-2]]


def training(name: str, *overrides: str) -> Training:
    """Count one experiment."""
    cfg = compose("train", [f"experiment={name}", "scale=paper", *overrides])
    cost = measure(build.build_model(cfg), tuple(cfg.dataset.image_shape))
    images = TRAINING_IMAGES[cfg.dataset.name] - cfg.dataset.val_size
    return Training(
        name,
        2.0 * cost.macs_with_aux * passes(cfg) * images * cfg.trainer.max_epochs,
        2.0 * cost.macs * 2 * PAPER_STEPS * TEST_IMAGES[cfg.dataset.name] * CHECKPOINTS,
        cost.parameters,
        cfg.trainer.max_epochs,
    )


def sustained(bench: dict[str, Any]) -> list[tuple[str, str, float, float]]:
    """Return (network, method, images/s, GFLOP/s) of the training steps that were measured."""
    rows = []
    for row in bench["throughput"]:
        strategy, defense = BENCHED[row["method"]]
        words = [f"model={row['network']}", f"strategy={strategy}", f"defense={defense}", "dataset=cifar10"]
        cfg = compose("train", words)
        macs = measure(build.build_model(cfg), tuple(cfg.dataset.image_shape)).macs_with_aux
        rate = row["images_per_second"]["float32"]
        rows.append((row["network"], row["method"], rate, rate * 2 * macs * passes(cfg) / 1e9))
    return rows


def wall_hours(jobs: list[Training], gpus: int) -> float:
    """Return the hours until the last of these jobs ends, the longest begun first, one to a GPU."""
    ends = [0.0] * gpus
    for job in sorted(jobs, key=lambda job: -job.flops):
        ends[ends.index(min(ends))] += (job.flops + job.attacked) / SUSTAINED / 3600
    return max(ends)


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ("---",) * len(header), *rows))


def main() -> None:
    bench = json.loads((HERE.parent / "speed" / "bench.json").read_text())
    measured = json.loads((HERE / "measured.json").read_text())
    names = [
        f"{group}/{path.stem}"
        for group in TABLES
        for path in sorted((config_folder() / "experiment" / group).glob("*.yaml"))
    ]
    with initialize_config_module(CONFIGS, version_base="1.3"):
        matrix = [training(name) for name in names]
        job = training("table1_cifar10/resnet18_fsr_at")
        rates = sustained(bench)
    write_text(HERE / "README.md", page(matrix, job, rates, bench, measured))


def page(
    matrix: list[Training],
    job: Training,
    rates: list[tuple[str, str, float, float]],
    bench: dict[str, Any],
    measured: dict[str, Any],
) -> str:
    """Return the page."""
    speeds = [row[3] for row in rates]
    hours = job.flops / SUSTAINED / 3600
    epoch = 3600 * hours / job.epochs
    step = 128 * job.flops / job.epochs / (TRAINING_IMAGES["cifar10"] - 1000) / SUSTAINED
    loader = bench["loader_ms"][0] / 1000 * 128 / bench["batch"]
    checkpoint = 8 * job.parameters / 1e6  # float32 weights and momentum
    saved, disk = 2 * checkpoint * 512 / epoch, measured["index"]["found"]["disk_mb_per_second"]
    index = {int(size): seconds for size, seconds in measured["index"]["found"]["seconds"].items()}
    per_row = index[max(index)] / max(index)
    shares = {
        "data loading": loader / step, "checkpoints": saved / disk,
        "the index": 2 * 512 * 1000 * per_row / (3600 * hours),
    }  # fmt: skip
    first = max(shares, key=lambda name: shares[name])
    demands = (
        f"{1e3 * loader:.2f} ms a step of 128 images, one core here",
        f"{checkpoint:.0f} MB, after each epoch ({epoch:.0f} s) last, at times best: {saved:.0f} MB/s",
        f"{1e6 * per_row:.0f} µs a row to rewrite it, one job at a time, twice a job",
    )
    limits = (f"{1e3 * step:.0f} ms of work in that step", f"{disk:.0f} MB/s, the disk here", "the sweep's time")
    rows = [
        (name, demand, limit, f"{100 * share:.2f} %")
        for (name, share), demand, limit in zip(shares.items(), demands, limits, strict=True)
    ]
    told = f"three scalars every 20 steps: {512 * 3 / (20 * step):.0f} a second in all"
    rows.append(("the tracker", told, "its server's limit; a run does not wait for it", ""))
    over, live = measured["overhead"]["found"], measured["survival"]["found"]
    host = measured["overhead"]["provenance"]["host"]
    more = [one - alone for one, alone in zip(over["one"], over["alone"], strict=True)]
    each = [(nine - one) / 8 for nine, one in zip(over["nine"], over["one"], strict=True)]
    lines = [(*row[:2], f"{row[2]:.2f}", f"{row[3]:.0f}") for row in rates]
    walls = [(str(n), f"{wall_hours(matrix, n):.1f}", f"{wall_hours([job] * 1000, n):.1f}") for n in GPUS]
    return TEMPLATE.format(
        assumed=f"{SUSTAINED / 1e12:.0f} TFLOP/s",
        rates=table(("network", "method", "images/s", "GFLOP/s"), lines),
        lowest=f"{min(speeds):.0f}", highest=f"{max(speeds):.0f}", off=f"{100 * (max(speeds) / min(speeds) - 1):.0f}",
        trainings=len(matrix), epochs=job.epochs, hours=f"{hours:.1f}",
        walls=table(("GPUs", "the paper's matrix, h", "1,000-job ablation, h"), walls),
        host=f"{host['processor']}, {host['cores']} cores", rounds=len(more),
        alone=f"{mid(over['alone']):.2f}", one=f"{mid(over['one']):.2f}", more=spread(more), each=spread(each),
        jobs=live["jobs"], starts=live["starts"], looks=live["looks"], minutes=f"{live['seconds'] / 60:.0f}",
        kills=", ".join(f"{count} times {what}" for what, count in live["kills"].items()) or "none came in time",
        demand=table(("what", "demand", "against", "share"), rows), first=first,
        cure=CURES[first], queue=f"{512 * 1000 * per_row:.0f}",
        growth=", ".join(f"{1e3 * seconds:.0f} ms for {size:,} jobs" for size, seconds in index.items()),
    )  # fmt: skip


TEMPLATE = """# What sweeps cost at scale

Made by `python experiments/scale/page.py` from `measured.json` (`sweep.py` says how), `../speed/bench.json` and counted
multiply-accumulates. Nothing here was run on a GPU: one is *assumed* to sustain {assumed}, and hours scale with the
inverse of that.

## The model: work alone

A training costs 2 x MACs x passes x images x epochs. A crafting step is two forward passes' worth, forward and backward
to the pixels; a training pass is three. If that is all there is to it, one machine sustains the same rate whatever the
network. Two processor cores, in float32, were measured to sustain {lowest} to {highest} GFLOP/s, so that a prediction
from one row to another is off by {off} % at worst:

{rates}

## What it comes to

The paper's matrix is the {trainings} trainings of Tables 1 to 4 and 6 and Figure 1, {epochs} epochs, each attacked by
the paper's protocol at its last and its best checkpoint; AutoAttack, which depends on what survives, is not in it. The
ablation is a thousand times AT+FSR, ResNet-18, CIFAR-10: {hours} h each on the assumed GPU.

{walls}

More GPUs than jobs gain nothing: the matrix ends with its longest training. `trainer=ddp` divides a job.

## What a sweep adds

A dry run (`trainer.fast_dev_run`) on `toy`, {rounds} rounds in turn, on {host}:

- by itself {alone} s; as a sweep of one job under `launcher=joblib_gpus` {one} s: {more} s more (target: at most 1.5);
- each further job of a pool: {each} s, as its process is warm.

{jobs} jobs were run to their end under random kills ({kills}); starts of the same command: {starts}, in all {minutes}
minutes. All finished. The index, looked at {looks} times, listed every job once, lost none that had finished, and
called none finished that was not.

## What saturates first

A thousand jobs on 512 GPUs, each demand as a share of what there is:

{demand}

First is {first}. {cure}
If 512 jobs end at once, the last of them waits {queue} s for the index. It is rewritten whole, so that its work grows
with the square of the jobs ({growth}).
"""


def spread(values: list[float]) -> str:
    """Return the median, the smallest and the largest."""
    return f"{mid(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def mid(values: list[float]) -> float:
    """Return the median."""
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    main()
