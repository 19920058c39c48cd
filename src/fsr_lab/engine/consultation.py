"""A trained network before the doctor: examined on a few test images, and the records of its run reviewed."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from fsr_lab.core.hashing import state_hash
from fsr_lab.core.record import EvaluationRecord, Finding
from fsr_lab.core.threat import Threat
from fsr_lab.core.units import whole
from fsr_lab.dataset.base import ImageDataModule
from fsr_lab.engine.run import load_records
from fsr_lab.evaluation.doctor import examine, left_out, review
from fsr_lab.evaluation.sanity import check_threat
from fsr_lab.model.defended import DefendedModel


class Consultation(NamedTuple):
    """What the doctor found.

    Attributes:
        findings: of the network by its name, and of each of its records, which also tells what was left out.
        left_out: checks of the network that were not run.
        records: those reviewed, by the name of their findings, to be judged; None where no verdict is wanted.
    """

    findings: Mapping[str, tuple[Finding, ...]]
    left_out: tuple[str, ...]
    records: Mapping[str, EvaluationRecord] | None = None

    @property
    def has_failed(self) -> bool:
        """Whether any check fails."""
        return any(finding.verdict == "fail" for found in self.findings.values() for finding in found)


def consult(
    model: DefendedModel,
    data: ImageDataModule,
    threat: Threat,
    *,
    name: str,
    samples: int,
    device: torch.device,
    run: Path | None,
    deep: bool = False,
) -> Consultation:
    """Examine a network, and review what its run recorded of these very weights.

    Args:
        model: with its weights.
        data: opened.
        threat: the evaluation's.
        name: of the network.
        samples: how many test images, from the first.
        device: to compute on.
        run: its run directory; None where the weights came alone.
        deep: examine the network deeply, and hand the records over for a verdict.

    Raises:
        ValueError: no samples, a threat in which there is nothing to attack, or a `deep` that is no truth value.
    """
    if not isinstance(deep, bool):
        raise ValueError(f"expected deep to be true or false, got {deep!r}")
    check_threat(threat)
    whole("samples", samples, 1)
    x, y = next(iter(data.test_batches(device, limit=samples)))
    examined = examine(model.to(device), x, y, threat, deep=deep)
    weights = state_hash(model.state_dict())
    records = {
        f"record of {record.name}": record
        for record in ([] if run is None else load_records(run))
        if record.provenance.hashes.get("weights") == weights
    }
    reviewed = {
        name: (*review(record), *(each for each in record.findings if each.verdict == "skip"))
        for name, record in records.items()
    }
    return Consultation({name: examined, **reviewed}, left_out(examined, deep=deep), records if deep else None)
