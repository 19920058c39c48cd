"""What an analysis is given: a trained network with its data and threat, and how to attack it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from fsr_lab.callback.progress import track
from fsr_lab.core.record import EvaluationRecord
from fsr_lab.core.route import Part
from fsr_lab.core.suggest import unknown
from fsr_lab.core.threat import Threat
from fsr_lab.core.types import Attack
from fsr_lab.dataset.base import ImageDataModule
from fsr_lab.dataset.resident import ResidentBatches
from fsr_lab.defense.fsr import FSR
from fsr_lab.evaluation.cell import cell_seed
from fsr_lab.model.defended import DefendedModel


class Findings(NamedTuple):
    """What an analysis returns.

    Attributes:
        arrays: by name; empty where all is in `records`.
        settings: what the analysis was asked and found out, as plain JSON values.
        records: {stem: evaluation} of what it attacked.
    """

    arrays: Mapping[str, NDArray[Any]]
    settings: Mapping[str, Any]
    records: Mapping[str, EvaluationRecord] = {}


@dataclass(frozen=True, kw_only=True)
class Study:
    """A trained network to look into.

    Attributes:
        model: with its weights, in eval mode, on `device`.
        name: what a table calls it.
        data: opened.
        threat: of the attacks.
        attacks: the evaluation's, by name.
        chains: the evaluation's.
        samples: how many test images, from the first; None is all.
        chunk: images per cell of an evaluation.
        seed: of the draws.
        device: to compute on.
        command: the command line, for records.
        ledgers: where evaluations keep their cells; None keeps nothing.
        other: a second network that the analysis asks for, such as one trained naturally.
    """

    model: DefendedModel
    name: str
    data: ImageDataModule
    threat: Threat
    attacks: Mapping[str, Attack]
    chains: Mapping[str, Sequence[str]]
    samples: int | None
    chunk: int
    seed: int
    device: torch.device
    command: str = "analyze"
    ledgers: Path | None = None
    other: DefendedModel | None = None

    def site(self, point: str | None) -> str:
        """Return the point of the FSR to look into: the one named, or the only one.

        Raises:
            ValueError: there is none there, or there are several to choose from.
        """
        sites = [place for place, defense in self.model.defenses.items() if isinstance(defense, FSR)]
        if point is not None and point not in sites:
            raise ValueError(unknown("FSR in this network", point, sites))
        if not sites:
            raise ValueError(f"{self.name} has no FSR to look into; give a run of defense=fsr")
        if point is None and len(sites) > 1:
            raise ValueError(f"{self.name} has an FSR at each of {sites}; give analysis.point=NAME")
        return point or sites[0]

    def parts(self, point: str, wanted: Sequence[Part]) -> list[Part]:
        """Return those of the wanted parts that the FSR at a point has, in their order."""
        known = self.model.defenses[point].routes
        return [part for part in wanted if part in known]

    def batches(self) -> ResidentBatches:
        """Return the test images in order, in batches (x, y) on the device."""
        return self.data.test_batches(self.device, limit=self.samples)

    def attacked(self, attack: Attack, what: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (x, x_adv, y) of the test images, each batch seeded by itself; the caller's random state returns.

        Args:
            attack: on the deployed network.
            what: tells the draws of one attack from another's, and names the progress.
        """
        batches = self.batches()
        for index, (x, y) in enumerate(track(batches, what, total=len(batches))):
            with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
                torch.manual_seed(cell_seed(self.seed, what, index))
                x_adv = attack(self.model, x, y)
            yield x, x_adv, y


class Analysis(Protocol):
    """What the options of conf/analysis build."""

    def __call__(self, study: Study) -> Findings: ...
