"""The speed page: what `bench.json` holds, as Markdown and a picture."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

NETWORKS = {"resnet18": "ResNet-18", "vgg16": "VGG16", "wrn34_10": "WRN-34-10"}


def page(content: dict[str, Any]) -> str:
    """Return the page."""
    results, about = content["results"], content["provenance"]
    step = next(row for row in results if row["name"] == "AT+FSR step")
    ours, slow = content["loader_ms"]
    return f"""# Speed, measured beside what it replaces

Made by `make bench`, one process, everything in it timed in turn. CIFAR-shaped images, networks of full width, PGD-10.

## Training, images per second

Whole optimiser steps, loading included. *Textbook* is adversarial training as published code tends to write it
(`textbook.py`): float32, NCHW, weight gradients while crafting, auxiliary heads in every forward, a DataLoader with
per-image transforms. *torchattacks* is the same loop with that package's PGD (its TPGD for TRADES). Ours are
`precision=32-true` and `precision=bf16-mixed`; the ratio is to the textbook, in brackets the smallest and largest of
the rounds; the share is of the rate that this machine was measured to reach in a product of two 2048x2048 matrices in
that number format, which convolutions here may exceed.

{
        _line(
            "network",
            "method",
            "batch",
            "textbook",
            "torchattacks",
            "ours, float32",
            "ours, bfloat16",
            "float32 ratio",
            "bfloat16 ratio",
            "share, float32",
            "share, bfloat16",
        )
    }
|---|---|--:|--:|--:|--:|--:|---|---|--:|--:|
{_lines(_throughput(row) for row in content["throughput"])}

Target on a processor with bfloat16 instructions: at least 2.2. Of a step, our loader takes {ours:.2f} ms
({100 * ours / step["other_ms"]:.3f} % of an AT step; target at most 1 %), per-image transforms {slow:.1f} ms.

## Memory

What two AT+FSR steps add to a process at their peak, in MB, at the batch sizes above.

| network | textbook | torchattacks | ours, float32 | ours, bfloat16 |
|---|--:|--:|--:|--:|
{
        _lines(
            f"| {NETWORKS[name]} | " + " | ".join(f"{value:.0f}" for value in row.values()) + " |"
            for name, row in content["memory"].items()
        )
    }

## How a step grows

AT+FSR, ResNet-18, bfloat16: by batch size (32x32, 10 steps), by image side (batch 8), by steps of PGD (batch 32).

![growth](growth.png)

{_growth(content["growth"])}

## Ratios

ResNet-18, batch {content["batch"]}, unless a row says otherwise: each piece of work right after its baseline,
{results[0]["rounds"]} times. Training steps are whole optimiser steps, crafting included, against one of AT without a
defence; curricula (CAT, FAT) stand at their last epoch; SEAT, EMA and SWA train as AT does, and their averages, which
the Trainer's callbacks keep, are not in these steps.

| comparison | ratio | range | target | ours, ms | other, ms |
|---|--:|--:|---|--:|--:|
{_lines(_ratio(row) for row in results)}

## Where

{about["host"]["processor"]}, {about["host"]["threads"]} threads, accelerator {about["host"]["accelerator"]}, vector
instructions {content["cpu"]}, bfloat16 instructions {"present" if content["bfloat16_instructions"] else "absent"}.
Versions: {", ".join(f"{name} {version}" for name, version in sorted(about["versions"].items()))}.
Revision {about["revision"][:10]}{" (modified)" if about["dirty"] else ""}.
Whether bfloat16 crafting finds what float32 crafting finds: [precision.md](precision.md). What evaluations cost:
[evaluation.md](evaluation.md).
"""


def draw_growth(growth: dict[str, dict[str, float]], path: Path) -> None:
    """Draw milliseconds against batch size, image side and steps."""
    labels = {"batch": "batch size", "side": "image side, pixels", "steps": "steps of PGD"}
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.8), layout="constrained")
    for axis, (name, values) in zip(axes, growth.items(), strict=True):
        at = [int(key) for key in values]
        axis.plot(at, list(values.values()), marker="o", color="#1f5a99")
        axis.set(xlabel=labels[name], ylabel="seconds a step", ylim=(0, None), xticks=at)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _lines(rows: Any) -> str:
    return "\n".join(rows)


def _throughput(row: dict[str, Any]) -> str:
    speed = " | ".join(f"{value:.2f}" for value in row["images_per_second"].values())
    ratios = " | ".join(f"{middle:.2f} [{low:.2f}, {high:.2f}]" for middle, low, high in row["over_textbook"].values())
    shares = " | ".join(f"{100 * value:.0f} %" for value in row["shares"].values())
    return f"| {NETWORKS[row['network']]} | {row['method']} | {row['batch']} | {speed} | {ratios} | {shares} |"


def _growth(growth: dict[str, dict[str, float]]) -> str:
    tables = []
    for name, values in growth.items():
        tables.append(f"| {name} | " + " | ".join(values) + " |")
        tables.append("|---|" + "--:|" * len(values))
        tables.append("| seconds | " + " | ".join(f"{value:.2f}" for value in values.values()) + " |\n")
    return "\n".join(tables).rstrip()


def _ratio(row: dict[str, Any]) -> str:
    return (
        f"| {row['name']} | {row['ratio']:.3f} | {row['lowest']:.3f} to {row['highest']:.3f} | {row['target']} | "
        f"{row['ours_ms']:.0f} | {row['other_ms']:.0f} |"
    )
