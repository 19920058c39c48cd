"""An evaluation: every attack on every sample, judged on the deployed model, kept sample by sample."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fsr_lab.callback.progress import track
from fsr_lab.core.crafting import Policy, crafting, judging
from fsr_lab.core.hashing import state_hash
from fsr_lab.core.losses import margin
from fsr_lab.core.provenance import Provenance
from fsr_lab.core.record import CLEAN, EvaluationRecord
from fsr_lab.core.threat import Threat
from fsr_lab.core.types import Attack, Classifier
from fsr_lab.evaluation import sanity
from fsr_lab.evaluation.counting import Counted


class Cell(NamedTuple):
    """One attack on one chunk of consecutive samples: the unit of work and of randomness. All fields (n,)."""

    outcome: NDArray[np.int8]
    margin: NDArray[np.float32]
    norm: NDArray[np.float32]
    forwards: int
    backwards: int


def evaluate(
    model: Classifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    attacks: Mapping[str, Attack],
    *,
    threat: Threat,
    seed: int,
    chunk: int = 500,
    name: str = "",
    command: str = "evaluate",
    data_hash: str = "",
) -> EvaluationRecord:
    """Attack a model and record, per attack and sample, whether it withstood.

    Random draws come from (seed, attack, chunk index) alone: neither the order of attacks nor anything run before
    changes them, and the caller's random state is given back. Clean accuracy is attack zero.

    Args:
        model: maps images in [0, 1] to logits; any callable.
        batches: (x, y) pairs: x (N, C, H, W) float in [0, 1], y (N,) int64. Cut anew into cells of `chunk`.
        attacks: by name; "clean" is taken.
        threat: what each attack's result is measured against.
        seed: of the attacks' draws.
        chunk: samples per cell; another size changes draws and rounding.
        name: what a table calls the model.
        command: the command line, for the record.
        data_hash: of the images, for the record.

    Raises:
        ValueError: images or labels out of range, a model that returns no finite logits, an attack that leaves the
            threat set, no sample at all.
        TypeError: a model that returns something other than one tensor.
    """
    if CLEAN in attacks:
        raise ValueError(f"an attack cannot be called {CLEAN!r}: that is attack zero of every record")
    chunks = list(_rechunked(batches, chunk))
    if not chunks:
        raise ValueError("expected at least one image to evaluate on, got none")
    for x, _ in chunks:
        sanity.check_images(x)
    counted = Counted(model)
    policies = {policy for attack in attacks.values() if isinstance(policy := getattr(attack, "policy", None), Policy)}
    for policy in policies:
        with crafting(counted, policy, example=chunks[0][0]):
            pass  # what a policy must find out about a network, once, is not an attack's cost
    columns = {
        attack_name: [
            run_cell(counted, attack, attack_name, x, y, threat=threat, seed=cell_seed(seed, attack_name, index))
            for index, (x, y) in enumerate(track(chunks, attack_name, total=len(chunks)))
        ]
        for attack_name, attack in ({CLEAN: _nothing} | dict(attacks)).items()
    }
    labels = np.concatenate([y.cpu().numpy() for _, y in chunks])
    hashes = {"data": data_hash}
    if isinstance(model, nn.Module):
        hashes["weights"] = state_hash(model.state_dict())
    return EvaluationRecord(
        attacks=tuple(columns),
        outcome=np.stack([np.concatenate([cell.outcome for cell in cells]) for cells in columns.values()]),
        margin=np.stack([np.concatenate([cell.margin for cell in cells]) for cells in columns.values()]),
        norm=np.stack([np.concatenate([cell.norm for cell in cells]) for cells in columns.values()]),
        ids=np.arange(len(labels)),
        labels=labels,
        forwards=np.array([sum(cell.forwards for cell in cells) for cells in columns.values()]),
        backwards=np.array([sum(cell.backwards for cell in cells) for cells in columns.values()]),
        threat=threat,
        precision=", ".join(sorted({str(policy) for policy in policies})) or "float32",
        chunk=chunk,
        settings={attack_name: repr(attack) for attack_name, attack in attacks.items()},
        findings=(),
        provenance=Provenance.collect(command=command, seed=seed, hashes=hashes),
        name=name,
    )


def run_cell(model: Counted, attack: Attack, name: str, x: Tensor, y: Tensor, *, threat: Threat, seed: int) -> Cell:
    """Run one attack on one chunk and judge it: float32, autocast off, the deployed model."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):  # manual_seed seeds every one of them
        torch.manual_seed(seed)
        model.reset()
        x_adv = attack(model, x, y)
        forwards, backwards = model.forwards, model.backwards
        norm = sanity.check_adversarial(name, x_adv, x, threat)
        with judging(model) as deployed:
            logits = sanity.check_logits(deployed(x_adv), len(x))
    sanity.check_labels(y, logits.shape[1])
    value = margin(logits, y)
    return Cell(
        outcome=(value > 0).cpu().numpy().astype(np.int8),
        margin=value.float().cpu().numpy(),
        norm=norm.float().cpu().numpy(),
        forwards=forwards,
        backwards=backwards,
    )


def cell_seed(seed: int, attack: str, index: int) -> int:
    """Return the 63-bit seed of one cell's draws."""
    digest = hashlib.sha256(f"evaluate {seed} {attack} {index}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _nothing(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
    """Attack zero: the clean images."""
    return x


def _rechunked(batches: Iterable[tuple[Tensor, Tensor]], chunk: int) -> Iterator[tuple[Tensor, Tensor]]:
    if chunk < 1:
        raise ValueError(f"expected a chunk of at least 1 sample, got {chunk}")
    pairs = list(batches)
    if not pairs:
        return
    x, y = (torch.cat(tensors) for tensors in zip(*pairs, strict=True))
    yield from zip(x.split(chunk), y.split(chunk), strict=True)
