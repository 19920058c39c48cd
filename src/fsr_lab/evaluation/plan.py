"""What an evaluation runs: which attacks together, and which on the samples only that others left."""

import hashlib
import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from fsr_lab.core.record import CLEAN, Asked, Finding
from fsr_lab.core.suggest import unknown
from fsr_lab.core.types import Attack, Classifier, FitsClasses, SharesPath
from fsr_lab.core.units import whole


class Limit(NamedTuple):
    """An attack that is run on some samples of each chunk only.

    Attributes:
        samples: at most so many, the first of those that are left.
        after: attacks whose victims are not left: those before the attack or, of a family, before its first.
    """

    samples: int
    after: tuple[str, ...]


class Work(NamedTuple):
    """Attacks that are run together on each chunk, and what must have been withstood before.

    Attributes:
        attacks: names; of several, the last does the work and the others take their part of it.
        after: attacks whose victims are left out.
        limit: which of those that are left are attacked; None is all.
    """

    attacks: tuple[str, ...]
    after: tuple[str, ...] = ()
    limit: Limit | None = None


def plan(
    attacks: Mapping[str, Attack],
    chains: Mapping[str, Asked],
    members: Mapping[str, Sequence[str]],
    *,
    limits: Mapping[str, int],
    may_share: bool,
) -> list[Work]:
    """Return the works in an order in which each finds what it needs, the clean images first.

    Args:
        attacks: what is run, by name.
        chains: by name, each after those that it waits for; see `ordered`.
        members: of each name in a chain, what is run.
        limits: {attack or family in a chain: on how many samples of a chunk it is run at most}.
        may_share: run attacks that share a path once. Right for networks that give the same logits twice.
    """
    chained = {each for chain in chains.values() for name in chain.own for each in members[name]}
    free = [name for name in attacks if name not in chained]
    works = [Work((CLEAN,)), *(_shared(attacks, free) if may_share else [Work((name,)) for name in free])]
    for before, own in chains.values():
        after = (CLEAN, *(each for name in before for each in members[name]))
        for name in own:
            limit = Limit(limits[name], after) if name in limits else None
            for each in members[name]:
                works.append(Work((each,), after, limit))
                after = (*after, each)
    return works


def check_names(attacks: Mapping[str, Attack], chains: Mapping[str, Asked], limits: Mapping[str, int]) -> None:
    """Refuse what a plan cannot be made of.

    Raises:
        ValueError: an attack is called "clean"; a limit below 1, of no attack, or of one that stands in no chain.
    """
    if CLEAN in attacks:
        raise ValueError(f"an attack cannot be called {CLEAN!r}: that is attack zero of every record")
    chained = {name for chain in chains.values() for name in chain.own}
    for name, samples in limits.items():
        if name not in attacks:
            raise ValueError(f"limits: {unknown('attack or family of this evaluation', name, attacks)}")
        whole(f"the limit of {name!r}", samples, 1)
        if name not in chained:
            raise ValueError(
                f"{name!r} stands in no chain, so that its column is of all samples, and has no limit; put it into one"
            )


def fitted(attacks: Mapping[str, Attack], num_classes: int) -> tuple[dict[str, Attack], tuple[Finding, ...]]:
    """Return the attacks, those replaced whose loss needs more classes, and a warning for each of these."""
    found, findings = dict(attacks), []
    for name, attack in attacks.items():
        if isinstance(attack, FitsClasses) and (other := attack.for_classes(num_classes)) != attack:
            found[name] = other
            text = f"{name} needs more than {num_classes} classes and was run with another loss: {other}"
            findings.append(Finding("classes", "warn", num_classes, text, (name,)))
    return found, tuple(findings)


def settings(attack: Attack) -> str:
    """Return all of an attack's parameters as text, the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(attack))


def columns(attacks: Mapping[str, Attack], works: Sequence[Work]) -> dict[str, str]:
    """Return a ledger's column of each attack: its name, and a digest of what decides its cells.

    That is its settings, its source where that is not ours, what went before it in a chain, the longer attack that it
    is run with, whose cells hold the passes, and the limit of its samples.

    Raises:
        ValueError: an attack does not tell its settings.
    """
    found = {CLEAN: CLEAN}
    for work in works[1:]:
        *_, longest = work.attacks
        for name in work.attacks:
            parts = [_identity(name, attacks[name]), *(found[before] for before in work.after)]
            parts += [settings(attacks[longest])] * (name != longest)
            if work.limit is not None:
                parts += [f"at most {work.limit.samples}", *(found[before] for before in work.limit.after)]
            found[name] = f"{name} {hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:10]}"
    return found


def _identity(name: str, attack: Attack) -> str:
    text = repr(attack)
    if " at 0x" in text or "..." in text:
        raise ValueError(
            f"attack {name!r} does not tell its settings ({' '.join(text.split())[:60]}), and a ledger needs them; "
            "make it a dataclass of plain values, or evaluate without a ledger"
        )
    source = Path(inspect.getsourcefile(type(attack)) or __file__)
    return text if source.is_relative_to(Path(__file__).parents[1]) else text + source.read_text()


def untouched(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
    """Attack zero: the clean images."""
    return x


def _shared(attacks: Mapping[str, Attack], names: Sequence[str]) -> list[Work]:
    """Return works of which the longest attack, which stands last, passes by the others."""
    groups: list[list[str]] = []
    for name in sorted(names, key=lambda name: int(getattr(attacks[name], "steps", 0))):
        longer = attacks[name]
        on_its_way = [
            group for group in groups
            if isinstance(longer, SharesPath) and all(longer.passes_by(attacks[other]) for other in group)
        ]  # fmt: skip
        groups = [group for group in groups if group not in on_its_way]
        groups.append([*(other for group in on_its_way for other in group), name])
    return [Work(tuple(group)) for group in groups]
