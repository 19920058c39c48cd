"""An evaluation: every attack on every sample, judged on the deployed model, kept sample by sample."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fsr_lab.attack.family import Family
from fsr_lab.callback.progress import track
from fsr_lab.core.crafting import Policy, crafting, judging
from fsr_lab.core.hashing import source_hash, state_hash
from fsr_lab.core.provenance import Provenance
from fsr_lab.core.record import CLEAN, NOT_RUN, WRONG, Asked, EvaluationRecord
from fsr_lab.core.threat import Threat
from fsr_lab.core.types import Attack, Classifier
from fsr_lab.evaluation import sanity
from fsr_lab.evaluation.cell import Cell, cell_seed, run_cells
from fsr_lab.evaluation.chains import ordered, with_families
from fsr_lab.evaluation.concern import concerned
from fsr_lab.evaluation.counting import Counted
from fsr_lab.evaluation.doctor import examined, review
from fsr_lab.evaluation.estimate import Survivors, announce, attacked
from fsr_lab.evaluation.ledger import Ledger
from fsr_lab.evaluation.plan import Work, check_names, columns, fitted, plan, settings, untouched
from fsr_lab.evaluation.subject import STEPS, Subject

CODE = source_hash("attack", "core", "defense", "evaluation", "model")
"""Of the source that decides what a cell holds, as it was when it was imported: other code has another ledger."""
EXAMINED = 64
"""Images that the doctor sees."""


def evaluate(
    model: Classifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    attacks: Mapping[str, Attack],
    *,
    threat: Threat,
    seed: int,
    chains: Mapping[str, Sequence[str]] | None = None,
    after: Mapping[str, Sequence[str]] | None = None,
    limits: Mapping[str, int] | None = None,
    ledger: Path | None = None,
    shard: tuple[int, int] = (0, 1),
    chunk: int = 500,
    keep_images: bool = False,
    doctor: bool = True,
    deep: bool = False,
    name: str = "",
    command: str = "evaluate",
    data_hash: str = "",
    about: str = "",
) -> EvaluationRecord:
    """Attack a model and record, per attack and sample, whether it withstood.

    The work is done in cells, an attack on a chunk of consecutive samples. Random draws come from (seed, attack, chunk
    index) alone: neither the order of attacks, nor an interruption, nor the number of shards changes them, and the
    caller's random state is given back. Clean accuracy is attack zero. Attacks that share a path are run once, and
    its passes are counted with the longest of them.

    Args:
        model: maps images in [0, 1] to logits; any callable.
        batches: (x, y) pairs: x (N, C, H, W) float in [0, 1], y (N,) int64. Cut anew into cells of `chunk`.
        attacks: by name; "clean" is taken. A `Family` is a chain of its name, its attacks "FAMILY/NAME". What has
            nothing to attack in the network is left out, as a finding and a line on standard error say.
        threat: what each attack's result is measured against.
        seed: of the attacks' draws.
        chains: {name: attacks in order}: each is run only on the samples that are right unattacked and withstood the
            chain's attacks before it, as AutoAttack's are. An attack in no chain is run on every sample.
        after: {chain: attacks and chains whose victims, and the victims of those that they were after, it leaves out}.
        limits: {attack or family in a chain: on how many of the samples left in a chunk, the first, it is run at most}.
        ledger: a folder that keeps every cell as soon as it is known: the same evaluation continues there after any
            kill, and is read back where nothing is missing. None keeps nothing.
        shard: (i, k): do every k-th chunk only, from the i-th on; the record holds their samples. Shards may share a
            ledger; a call without `shard` then finds everything done.
        chunk: samples per cell; another size changes draws and rounding.
        keep_images: keep the adversarial images in the ledger, as float32.
        doctor: examine the network before, on the first images, and review the record after, if there are attacks:
            the findings are the record's. The passes are not counted as any attack's.
        deep: let the doctor examine the network deeply, which takes about a thousand passes over 64 images.
        name: what a table calls the model.
        command: the command line, for the record.
        data_hash: of the images, for the record.
        about: what else makes the network, where weights do not tell all; a ledger of another text is refused.

    Raises:
        ValueError: images or labels out of range, an eps of 0 or beyond the pixel range, a model that returns no
            finite logits, an attack that leaves the threat set, no sample at all, names in `chains`, `after` or
            `limits` that are not there or wait for each other, a ledger of another evaluation.
        TypeError: a model that returns something other than one tensor.
        OSError: the ledger cannot be written; what it held before is whole.
    """
    chunks = list(_rechunked(batches, chunk))
    if not chunks:
        raise ValueError("expected at least one image to evaluate on, got none")
    sanity.check_threat(threat)
    for x, _ in chunks:
        sanity.check_images(x)
    if keep_images and ledger is None:
        raise ValueError("there is no ledger to keep the images in; give ledger=FOLDER")
    mine = _own_chunks(len(chunks), shard)
    families = {name for name, attack in attacks.items() if isinstance(attack, Family)}
    orders, limits = ordered(chains or {}, after or {}, attacks, families), limits or {}
    check_names(attacks, orders, limits)
    counted = Counted(model)
    num_classes, is_deterministic = _probed(counted, chunks[0][0][:8])
    for _, y in chunks:
        sanity.check_labels(y, num_classes)
    attacks, left_out, members, skipped = concerned(counted, chunks[0][0][:8], attacks)
    attacks, replaced = fitted(attacks, num_classes)
    findings = (*skipped, *replaced)
    if shard[0] == 0:
        for finding in skipped:
            print(finding.text, file=sys.stderr, flush=True)
    works = plan(attacks, orders, members, limits=limits, may_share=is_deterministic)
    doctor = doctor and bool(attacks)  # clean accuracy alone is no robustness
    x, y = (torch.cat(parts)[:EXAMINED] for parts in zip(*chunks[: -(-EXAMINED // chunk)], strict=True))
    subject = Subject(model, x, y, threat)
    if doctor:
        findings += examined(subject, deep=deep)
    policies = {policy for attack in attacks.values() if isinstance(policy := getattr(attack, "policy", None), Policy)}
    for policy in policies:
        with crafting(counted, policy, example=chunks[0][0]):
            pass  # what a policy must find out about a network, once, is not an attack's cost
    hashes = {"data": data_hash}
    if isinstance(model, nn.Module):
        hashes["weights"] = state_hash(model.state_dict())
    provenance = Provenance.collect(command=command, seed=seed, hashes=hashes)
    if ledger is None:
        book, column = Ledger(None, {}), {attack: attack for attack in (CLEAN, *attacks)}
    else:
        column = columns(attacks, works)
        identity = {"weights": hashes.get("weights", ""), "about": about} | _identity(chunks, threat, seed, chunk)
        book = Ledger(ledger, identity)
        _recognise(counted, chunks, mine, book, threat, seed)
    if shard[0] == 0:
        survivors = _survivors(subject)
        samples = {
            work.attacks[-1]: attacked(work, [len(chunks[i][1]) for i in _missing(book, work, column, mine)], survivors)
            for work in works[1:]
        }
        announce(counted, x, y, attacks, samples, num_classes, survivors)
    runnable = {CLEAN: untouched} | attacks
    for work in works:
        last = work.attacks[-1]
        for index in track(mine, ", ".join(work.attacks), total=len(mine)):
            settled = _settled(book, work, column, index)
            cells = [book.find(column[attack], index, with_images=keep_images) for attack in work.attacks]
            if all(_is_of(cell, settled) for cell in cells):
                continue
            done = run_cells(
                counted, {attack: runnable[attack] for attack in work.attacks}, *chunks[index], threat=threat,
                seed=cell_seed(seed, last, index), settled=settled, keep_images=keep_images,
            )  # fmt: skip
            for attack, cell in done.items():
                book.put(column[attack], index, cell)
    record = EvaluationRecord(
        **_facts({attack: [book.cell(column[attack], index) for index in mine] for attack in runnable}),
        ids=np.concatenate([_none(), *(np.arange(len(chunks[i][1])) + i * chunk for i in mine)]),
        labels=np.concatenate([_none(), *(chunks[index][1].cpu().numpy() for index in mine)]),
        threat=threat,
        precision=", ".join(sorted({str(policy) for policy in policies})) or "float32",
        chunk=chunk,
        settings={attack_name: settings(attack) for attack_name, attack in (attacks | left_out).items()},
        findings=findings,
        provenance=provenance,
        name=name,
        **_chains(with_families(orders, families), members),
        limits={attack_name: limit for attack_name, limit in limits.items() if members[attack_name]},
    )
    return replace(record, findings=(*findings, *review(record))) if doctor else record


def _facts(cells: Mapping[str, Sequence[Cell]]) -> dict[str, Any]:
    """Return a record's attacks, arrays and counts."""

    def joined(field: str, dtype: type) -> NDArray[Any]:
        rows = [np.concatenate([np.empty(0, dtype), *(getattr(cell, field) for cell in row)]) for row in cells.values()]
        return np.stack(rows).astype(dtype)

    return {
        "attacks": tuple(cells), "outcome": joined("outcome", np.int8), "margin": joined("margin", np.float32),
        "norm": joined("norm", np.float32),
        "forwards": np.array([sum(cell.forwards for cell in row) for row in cells.values()], dtype=np.int64),
        "backwards": np.array([sum(cell.backwards for cell in row) for row in cells.values()], dtype=np.int64),
    }  # fmt: skip


def _chains(orders: Mapping[str, Asked], members: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return a record's chains; one of which nothing concerns the network is none."""
    run = {
        name: tuple(each for part in order for unit in part for each in members[unit]) for name, order in orders.items()
    }
    kept = [name for name, order in orders.items() if not order.own or any(members[unit] for unit in order.own)]
    return {"chains": {name: run[name] for name in kept}, "asked": {name: orders[name] for name in kept}}


def _survivors(subject: Subject) -> Survivors:
    """Return how many samples attacks will be left with, as far as the doctor looked."""
    if subject.withstood is None:
        return Survivors()
    return Survivors(*subject.withstood, f"under PGD-{max(STEPS)} on {len(subject.y)} images")


def _missing(book: Ledger, work: Work, column: Mapping[str, str], mine: Sequence[int]) -> list[int]:
    """Return the chunks of which the ledger lacks a cell."""
    return [index for index in mine if any(book.find(column[attack], index) is None for attack in work.attacks)]


def _settled(book: Ledger, work: Work, column: Mapping[str, str], index: int) -> NDArray[np.bool_] | None:
    """Return (n,) which samples of a chunk a work leaves out; None where it attacks every one."""
    settled = _broken(book, [column[name] for name in work.after], index)
    if settled is None or work.limit is None:
        return settled
    left = ~cast(NDArray[np.bool_], _broken(book, [column[name] for name in work.limit.after], index))
    beyond: NDArray[np.bool_] = left.cumsum() > work.limit.samples
    return settled | beyond


def _broken(book: Ledger, columns: Sequence[str], index: int) -> NDArray[np.bool_] | None:
    """Return (n,) which samples of a chunk these have got wrong; None where there are none of these."""
    if not columns:
        return None
    broken: NDArray[np.bool_] = (np.stack([book.cell(column, index).outcome for column in columns]) == WRONG).any(0)
    return broken


def _probed(model: Classifier, x: Tensor) -> tuple[int, bool]:
    """Return how many classes a model has, and whether it gives the same logits twice."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), judging(model) as deployed:
        first = sanity.check_logits(deployed(x), len(x))
        return first.shape[1], torch.equal(first, deployed(x))


def _is_of(cell: Cell | None, settled: NDArray[np.bool_] | None) -> bool:
    """Tell whether a cell is there and was run on the samples that it is to be run on."""
    if cell is None:
        return False
    idle = cell.outcome == NOT_RUN
    return not idle.any() if settled is None else np.array_equal(idle, settled)


def _recognise(
    model: Counted,
    chunks: Sequence[tuple[Tensor, Tensor]],
    mine: Sequence[int],
    book: Ledger,
    threat: Threat,
    seed: int,
) -> None:
    """Refuse a ledger whose clean margins are not this model's: weights do not tell all, and a callable has none.

    Raises:
        ValueError: as said.
    """
    index = next((index for index in mine if book.find(CLEAN, index) is not None), None)
    if index is None:
        return
    known = book.cell(CLEAN, index).margin
    cells = run_cells(model, {CLEAN: untouched}, *chunks[index], threat=threat, seed=cell_seed(seed, CLEAN, index))
    ours = cells[CLEAN].margin
    if known.shape != ours.shape or not np.allclose(known, ours, rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"{book.folder} is the ledger of another network: on the clean images its margins are others; "
            "give this evaluation another ledger="
        )


def _identity(chunks: Sequence[tuple[Tensor, Tensor]], threat: Threat, seed: int, chunk: int) -> dict[str, Any]:
    """Return what, beside the network, makes two evaluations the same but for their attacks."""
    x, y = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    return {
        "data": state_hash({"x": x, "y": y}), "samples": len(y), "norm": threat.norm, "eps": threat.eps, "seed": seed,
        "chunk": chunk, "code": CODE, "torch": torch.__version__,
    }  # fmt: skip


def _own_chunks(count: int, shard: tuple[int, int]) -> range:
    index, shards = shard
    if not 0 <= index < shards:
        raise ValueError(f"expected shard (i, k) with 0 <= i < k, got ({index}, {shards})")
    return range(index, count, shards)


def _none() -> NDArray[np.int64]:
    return np.empty(0, dtype=np.int64)


def _rechunked(batches: Iterable[tuple[Tensor, Tensor]], chunk: int) -> Iterator[tuple[Tensor, Tensor]]:
    if chunk < 1:
        raise ValueError(f"expected a chunk of at least 1 sample, got {chunk}")
    pairs = list(batches)
    if not pairs:
        return
    if not all(isinstance(pair, Sequence) and len(pair) == 2 and isinstance(pair[1], Tensor) for pair in pairs):
        raise TypeError("expected batches of images and labels, (x, y) tensors; without labels nothing can be judged")
    x, y = (torch.cat(tensors) for tensors in zip(*pairs, strict=True))
    yield from zip(x.split(chunk), y.split(chunk), strict=True)
