"""What an evaluation found, sample by sample; every percentage is derived from it."""

import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from fsr_lab.core.files import write_atomically, write_text
from fsr_lab.core.provenance import Provenance
from fsr_lab.core.suggest import unknown
from fsr_lab.core.threat import Threat

CLEAN = "clean"
PAPER_FOUR = ("fgsm", "pgd20", "pgd100", "cw30")
"""The attacks of the paper's Ensemble (Eq. 6)."""

DAMAGES = (OSError, KeyError, TypeError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What reading a damaged file may raise."""

NOT_RUN, WRONG, CORRECT = -1, 0, 1

_ARRAYS = ("outcome", "margin", "norm", "ids", "labels", "forwards", "backwards")


class Finding(NamedTuple):
    """One check's verdict.

    Attributes:
        check: which check it was.
        verdict: "pass", "warn" or "fail"; "skip" of what was left out, which doubts no number.
        value: the number that the verdict rests on.
        text: what that number is and what it means, in one line.
        attacks: whose numbers it touches; none named is every number of the record.
    """

    check: str
    verdict: str
    value: float
    text: str
    attacks: tuple[str, ...] = ()


class Asked(NamedTuple):
    """A chain as it was asked for: families by their names, and what was left out as not concerning the network.

    Attributes:
        before: what had been run when the chain began.
        own: what the chain itself runs.
    """

    before: tuple[str, ...]
    own: tuple[str, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class EvaluationRecord:
    """Per-sample facts of one evaluation of one network.

    Attributes:
        attacks: names, A of them; "clean" is always the first.
        outcome: int8 (A, N): -1 not run, the sample being settled; 0 wrong; 1 correct.
        margin: float32 (A, N), z_y - max other of the judged forward; NaN where not run.
        norm: float32 (A, N), the evaluator's own measurement of the perturbation; NaN where not run.
        ids: int64 (N,), place in the split.
        labels: int64 (N,).
        forwards: int64 (A,), model calls times images, counted; a batch of 5 counts 5.
        backwards: int64 (A,), likewise, of input gradients.
        threat: norm and eps.
        precision: how the attacks crafted; the judge is always float32.
        chunk: samples per cell, the unit of randomness.
        settings: {attack: all its parameters, as text}, of those too that were left out.
        chains: {name: attacks}, what went before the chain and then its own, each of these run on the samples only that
            were right unattacked and withstood the attacks before it: AutoAttack is one, and so is a family, whose
            attacks are "FAMILY/NAME". Its accuracy is `worst_case` of "clean" and its attacks.
        asked: {chain: how it was asked for}; of a chain that is not here, all attacks are its own.
        limits: {attack or family: on how many samples, the first of those that were left in a chunk, it was run at
            most}. The others withstood it unseen.
        findings: verdicts of the sanity checks.
        provenance: where the numbers come from.
        name: what is evaluated, as a table shows it.
    """

    attacks: tuple[str, ...]
    outcome: NDArray[np.int8]
    margin: NDArray[np.float32]
    norm: NDArray[np.float32]
    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    forwards: NDArray[np.int64]
    backwards: NDArray[np.int64]
    threat: Threat
    precision: str
    chunk: int
    settings: Mapping[str, str]
    findings: tuple[Finding, ...]
    provenance: Provenance
    name: str = ""
    chains: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    asked: Mapping[str, Asked] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.attacks or self.attacks[0] != CLEAN:
            raise ValueError(f"expected {CLEAN!r} as the first attack of a record, got {self.attacks}")
        attacks, samples = len(self.attacks), len(self.ids)
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("outcome", "margin", "norm"), (attacks, samples))
        shapes |= {"labels": (samples,), "forwards": (attacks,), "backwards": (attacks,)}
        for array, shape in shapes.items():
            if getattr(self, array).shape != shape:
                raise ValueError(f"expected {array} of shape {shape}, got {getattr(self, array).shape}")
        for attack in (attack for chain in self.chains.values() for attack in chain):
            if attack not in self.attacks:
                raise ValueError(unknown("attack in this record", attack, self.attacks))

    def __len__(self) -> int:
        return len(self.ids)

    def order(self, chain: str) -> Asked:
        """Return what a chain was asked to run, and after what."""
        return self.asked.get(chain, Asked((), self.chains[chain]))

    def members(self, name: str) -> tuple[str, ...]:
        """Return the attacks of this record that are one asked for, or a family's; none if it was left out."""
        return tuple(attack for attack in self.attacks if attack == name or attack.startswith(f"{name}/"))

    def correct(self, attack: str) -> NDArray[np.bool_]:
        """Return (N,) whether each sample withstood one attack.

        Raises:
            ValueError: the attack is not in the record, or was not run on every sample.
        """
        if attack not in self.attacks:
            raise ValueError(unknown("attack in this record", attack, self.attacks))
        row = self.outcome[self.attacks.index(attack)]
        if (row == NOT_RUN).any():
            raise ValueError(f"{attack!r} was not run on every sample: ask for worst_case")
        withstood: NDArray[np.bool_] = row == CORRECT
        return withstood

    def worst_case(self, names: Sequence[str]) -> NDArray[np.bool_]:
        """Return (N,) whether each sample withstood all of the named attacks; Eq. 6 for `PAPER_FOUR`."""
        for name in names:
            if name not in self.attacks:
                raise ValueError(unknown("attack in this record", name, self.attacks))
        rows = self.outcome[[self.attacks.index(name) for name in names]]
        withstood: NDArray[np.bool_] = ~(rows == WRONG).any(axis=0)
        return withstood

    @classmethod
    def merged(cls, records: Sequence[Self]) -> Self:
        """Return the record of all samples of several shards, in the order of their ids; passes are added up.

        Raises:
            ValueError: there is none, they are not of one evaluation, or two hold the same sample.
        """
        if not records:
            raise ValueError("no record to merge")
        first = records[0]
        for what in ("asked", "attacks", "chains", "chunk", "limits", "precision", "settings", "threat"):
            for record in records:
                if getattr(record, what) != getattr(first, what):
                    raise ValueError(f"these records are not shards of one evaluation: their {what} differ")
        if any(record.provenance.hashes != first.provenance.hashes for record in records):
            raise ValueError("these records are not shards of one evaluation: their weights or data differ")
        ids = np.concatenate([record.ids for record in records])
        order = np.argsort(ids, kind="stable")
        if (repeated := ids[order][1:][np.diff(ids[order]) == 0]).size:
            raise ValueError(f"sample {repeated[0]} is in two of these records; merge each shard once")
        joined: dict[str, Any] = {
            name: np.concatenate([getattr(record, name) for record in records], axis=-1)[..., order]
            for name in ("outcome", "margin", "norm", "ids", "labels")
        }
        passes: dict[str, Any] = {
            name: sum(getattr(record, name) for record in records) for name in ("forwards", "backwards")
        }
        findings = tuple(dict.fromkeys(finding for record in records for finding in record.findings))
        return replace(first, **joined, **passes, findings=findings)

    def save(self, folder: Path, stem: str) -> Path:
        """Write `<stem>.npz` (arrays) and then `<stem>.json` (the rest), each whole or not at all."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        write_atomically(folder / f"{stem}.npz", lambda stream: np.savez_compressed(stream, **arrays))
        path = folder / f"{stem}.json"
        write_text(path, json.dumps(self._header(), indent=1, sort_keys=True) + "\n")
        return path

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a record back from its JSON file.

        Raises:
            ValueError: a file is missing, damaged or not a record.
        """
        try:
            header = json.loads(path.read_text())
            with path.with_suffix(".npz").open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in _ARRAYS}
            return cls(
                attacks=tuple(header["attacks"]), threat=Threat(**header["threat"]), name=header["name"],
                precision=header["precision"], chunk=header["chunk"], settings=header["settings"],
                provenance=Provenance(**header["provenance"]),
                findings=tuple(Finding(*about[:4], *map(tuple, about[4:])) for about in header["findings"]),
                chains={name: tuple(chain) for name, chain in header.get("chains", {}).items()},
                asked={name: Asked(*map(tuple, both)) for name, both in header.get("asked", {}).items()},
                limits=header.get("limits", {}), **arrays,
            )  # fmt: skip
        except DAMAGES as err:
            raise ValueError(f"{path} is not a whole evaluation record ({err}); evaluate again") from err

    def _header(self) -> dict[str, Any]:
        return {
            "asked": dict(self.asked), "attacks": self.attacks, "chains": dict(self.chains), "chunk": self.chunk,
            "findings": self.findings, "limits": dict(self.limits), "name": self.name, "precision": self.precision,
            "provenance": self.provenance.as_dict(),
            "samples": len(self), "settings": dict(self.settings),
            "threat": {"eps": self.threat.eps, "norm": self.threat.norm},
        }  # fmt: skip
