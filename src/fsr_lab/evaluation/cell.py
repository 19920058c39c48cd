"""A cell: attacks run on one chunk of consecutive samples, and judged."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fsr_lab.core.crafting import judging
from fsr_lab.core.losses import margin
from fsr_lab.core.record import NOT_RUN
from fsr_lab.core.threat import Threat
from fsr_lab.core.types import Attack, SharesPath
from fsr_lab.evaluation import sanity
from fsr_lab.evaluation.counting import Counted


@dataclass(frozen=True, eq=False, kw_only=True)
class Cell:
    """One attack on one chunk: the unit of work, of randomness, of resuming and of sharding.

    Attributes:
        outcome: int8 (n,): -1 not run, 0 wrong, 1 correct.
        margin: float32 (n,), NaN where not run.
        norm: float32 (n,), NaN where not run.
        forwards: images passed forwards.
        backwards: images whose gradient was taken.
        images: float32 (n, C, H, W) what the attack found, if it is kept; the clean image where it was not run.
    """

    outcome: NDArray[np.int8]
    margin: NDArray[np.float32]
    norm: NDArray[np.float32]
    forwards: int = 0
    backwards: int = 0
    images: NDArray[np.float32] | None = None


def run_cells(
    model: Counted,
    attacks: Mapping[str, Attack],
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    seed: int,
    settled: NDArray[np.bool_] | None = None,
    keep_images: bool = False,
) -> dict[str, Cell]:
    """Run attacks on one chunk and judge them: float32, autocast off, the deployed model.

    Args:
        model: the attacked network.
        attacks: by name, one or several that share a path, the longest last; its cell holds the passes of all.
        x: (n, C, H, W) in [0, 1].
        y: (n,) int64.
        threat: what the perturbations are measured against.
        seed: of every random draw in here; the caller's random state is given back.
        settled: (n,) samples that are left out.
        keep_images: keep what the attacks found.

    Raises:
        ValueError: an attack left the threat set, or the model gives no finite logits.
    """
    alive = np.ones(len(y), dtype=bool) if settled is None else ~settled
    rows = torch.from_numpy(alive.nonzero()[0]).to(x.device)
    # a whole chunk is passed on as it is: an index would copy it
    inputs, labels = (x, y) if alive.all() else (x[rows], y[rows])
    cells = {}
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):  # manual_seed seeds every one of them
        torch.manual_seed(seed)
        model.reset()
        found = _attacked(list(attacks.values()), model, inputs, labels) if len(rows) else [inputs] * len(attacks)
        forwards, backwards = model.forwards, model.backwards
        for name, x_adv in zip(attacks, found, strict=True):
            cells[name] = _judged(model, name, x_adv, inputs, labels, threat, alive)
            if keep_images:
                images = x.clone()
                images[rows] = x_adv.to(images)
                cells[name] = replace(cells[name], images=images.float().cpu().numpy())
    longest = list(attacks)[-1]
    cells[longest] = replace(cells[longest], forwards=forwards, backwards=backwards)
    return cells


def cell_seed(seed: int, attack: str, index: int) -> int:
    """Return the 63-bit seed of one cell's draws."""
    digest = hashlib.sha256(f"evaluate {seed} {attack} {index}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _attacked(attacks: Sequence[Attack], model: Counted, x: Tensor, y: Tensor) -> list[Tensor]:
    *others, longest = attacks
    if not others:
        return [longest(model, x, y)]
    return cast(SharesPath, longest).together(attacks, model, x, y)


def _judged(
    model: Counted, name: str, x_adv: Tensor, x: Tensor, y: Tensor, threat: Threat, alive: NDArray[np.bool_]
) -> Cell:
    """Return the cell, without its passes, of a whole chunk, of which x_adv are the samples that are alive."""
    outcome = np.full(len(alive), NOT_RUN, dtype=np.int8)
    margins, norms = (np.full(len(alive), np.nan, dtype=np.float32) for _ in range(2))
    if len(x):
        norm = sanity.check_adversarial(name, x_adv, x, threat)
        with judging(model) as deployed:
            logits = sanity.check_logits(deployed(x_adv), len(x))
        sanity.check_labels(y, logits.shape[1])
        value = margin(logits, y)
        outcome[alive] = (value > 0).cpu().numpy()
        margins[alive], norms[alive] = (values.float().cpu().numpy() for values in (value, norm))
    return Cell(outcome=outcome, margin=margins, norm=norms)
