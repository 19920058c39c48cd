"""What a record tells of its attacks: whether they see the network's gradients, their steps, which are adaptive."""

import re
from collections.abc import Mapping

from fsr_lab.core.record import CLEAN, EvaluationRecord

TRANSFER = re.compile(r"\bTransfer\((?!with_target=True)")
BY_QUERIES = re.compile(r"\b(Square|NAttack|SPSA)\(")
"""Attacks that no gradient of the attacked network can mislead, by their settings' text."""
BY_GRADIENTS = re.compile(r"\b(PGD|APGD|FAB)\(")
"""Attacks that one can, also where another one is carried out beside them: alone, they need no name here."""
STEPS = re.compile(r"\bsteps=(\d+)")
FAMILY = re.compile(r"a(?:10|[1-9])")
"""How families of adaptive attacks are called: a1 to a10 (METHOD §7)."""


def is_gradient_free(record: EvaluationRecord, name: str) -> bool:
    """Tell whether an attack, or each that it carries out, works without the attacked network's gradients."""
    rest = settings = record.settings.get(name, "")
    while found := TRANSFER.search(rest):
        depth, end = 1, found.end()
        while depth and end < len(rest):
            depth += {"(": 1, ")": -1}.get(rest[end], 0)
            end += 1
        rest = rest[: found.start()] + rest[end:]  # without what is crafted on the source
    is_free = rest != settings or BY_QUERIES.search(rest) is not None
    return is_free and BY_GRADIENTS.search(rest) is None


def is_transfer(record: EvaluationRecord, name: str) -> bool:
    """Tell whether an attack crafts on another network."""
    return TRANSFER.search(record.settings.get(name, "")) is not None


def steps_of(record: EvaluationRecord, name: str) -> int:
    """Return how many steps an attack takes, 0 where its settings tell none."""
    found = STEPS.search(record.settings.get(name, ""))
    return int(found[1]) if found else 0


def adaptive_families(record: EvaluationRecord) -> Mapping[str, tuple[str, ...]]:
    """Return {family: its own attacks}: those called "a1/NAME", or else the chain a1 but for what other chains hold."""
    shared = {name for chain, members in record.chains.items() if not FAMILY.fullmatch(chain) for name in members}
    found: dict[str, tuple[str, ...]] = {}
    for name in record.attacks:
        family, slash, _ = name.partition("/")
        if slash and FAMILY.fullmatch(family):
            found[family] = (*found.get(family, ()), name)
    named = {name for members in found.values() for name in members}
    for family, chain in record.chains.items():
        own = tuple(name for name in chain if name not in shared | named | {CLEAN})
        if FAMILY.fullmatch(family) and family not in found and own:
            found[family] = own
    return found
