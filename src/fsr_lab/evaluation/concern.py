"""Which of the attacks asked for concern the network: families taken apart, and what has nothing to attack left out."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fsr_lab.attack.family import Family
from fsr_lab.attack.wrapper import lack_of
from fsr_lab.core.crafting import judging
from fsr_lab.core.record import Finding
from fsr_lab.core.types import Attack, Classifier


class Concerned(NamedTuple):
    """What is run.

    Attributes:
        attacks: by their names in the record; those of a family are "FAMILY/NAME".
        left_out: by the names that they would have had there.
        members: of each attack asked for, the names of what is run: its own, those of a family, or none.
        findings: a line for each attack or family that is left out, whole or in part.
    """

    attacks: dict[str, Attack]
    left_out: dict[str, Attack]
    members: dict[str, tuple[str, ...]]
    findings: tuple[Finding, ...]


def concerned(model: Classifier, x: Tensor, attacks: Mapping[str, Attack]) -> Concerned:
    """Take families apart, and leave out what the network lacks something for.

    Args:
        model: as deployed; no random draw of its is seen by the caller.
        x: (N, C, H, W), images that it may be shown.
        attacks: by name.
    """
    run: dict[str, Attack] = {}
    left_out: dict[str, Attack] = {}
    members: dict[str, tuple[str, ...]] = {}
    findings = []
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), judging(model) as deployed:
        for name, attack in attacks.items():
            parts, lacks = _taken_apart(name, attack, deployed, x)
            run |= {part: each for part, each in parts.items() if part not in lacks}
            left_out |= {part: parts[part] for part in lacks}
            members[name] = tuple(part for part in parts if part not in lacks)
            if lacks:
                findings.append(Finding("concerns", "skip", len(lacks), _told(name, len(parts), lacks), (name,)))
    return Concerned(run, left_out, members, tuple(findings))


def _taken_apart(
    name: str, attack: Attack, deployed: Classifier, x: Tensor
) -> tuple[Mapping[str, Attack], dict[str, str]]:
    """Return an attack or a family's, by the names in the record, and what the network lacks for some of them."""
    if isinstance(attack, Family):
        _, reasons = attack.concerning(deployed, x)
        parts = {f"{name}/{member}": each for member, each in attack.attacks.items()}
        return parts, {f"{name}/{member}": reason for member, reason in reasons.items()}
    lack = lack_of(attack, deployed, x)
    return {name: attack}, {} if lack is None else {name: lack}


def _told(name: str, count: int, lacks: Mapping[str, str]) -> str:
    if len(lacks) == count:
        return f"{name} is left out: {'; '.join(dict.fromkeys(lacks.values()))}"
    reasons: dict[str, list[str]] = {}
    for part, lack in lacks.items():
        reasons.setdefault(lack, []).append(part.removeprefix(f"{name}/"))
    told = "; ".join(f"{', '.join(parts)} ({lack})" for lack, parts in reasons.items())
    return f"{name} is run without {len(lacks)} of its {count} attacks: {told}"
