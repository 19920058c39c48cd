"""The rules of the verdict, as data: what is measured, above which limit it is a sign of masking, why, and who says so.

They read rows and names alone. A sample is taken by an attack where its row says wrong; a row that was not run there
says that an attack before it in a chain had settled the sample.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from fsr_lab.core.attack_kinds import adaptive_families, is_gradient_free, is_transfer, steps_of
from fsr_lab.core.record import CLEAN, NOT_RUN, WRONG, EvaluationRecord, Finding
from fsr_lab.report.columns import HEADINGS, SIGNS
from fsr_lab.report.interval import wilson

POINT = 0.01
"""Papers report differences of one point as progress; less is no reason to distrust a number."""
STRONG = 20
"""Steps that a gradient attack must take for others to be compared with it: FGSM loses to Square on any network."""
STANDARD = ("autoattack", "autoattack_rand")
"""Chains that robustness is reported under, in the order in which they are looked for."""


class Evidence(NamedTuple):
    """What one rule found.

    Attributes:
        rule: its name.
        is_sign: whether it is above the limit.
        share: what was measured.
        limit: above which it is a sign; None where a check has its own.
        text: all of it, as the end of a sentence.
    """

    rule: str
    is_sign: bool
    share: float
    limit: float | None
    text: str


class Facts(NamedTuple):
    """A record, and what the rules ask of it more than once.

    Attributes:
        record: the record.
        families: {family: its attacks} of the adaptive attacks.
        white: attacks by the network's gradients that are not adaptive.
        base: what adaptive attacks are compared with: AutoAttack's attacks, or else `white`.
        base_name: what a sentence calls them.
    """

    record: EvaluationRecord
    families: Mapping[str, tuple[str, ...]]
    white: tuple[str, ...]
    base: tuple[str, ...]
    base_name: str

    @classmethod
    def of(cls, record: EvaluationRecord) -> Self:
        """Return the facts of a record."""
        families = adaptive_families(record)
        adaptive = {name for members in families.values() for name in members}
        white = tuple(
            name for name in record.attacks if name not in adaptive | {CLEAN} and not is_gradient_free(record, name)
        )
        for chain in STANDARD:
            if chain in record.chains:
                return cls(record, families, white, record.chains[chain], f"{HEADINGS[chain]} leaves")
        return cls(record, families, white, white, "the gradient attacks leave")

    @property
    def adaptive(self) -> tuple[str, ...]:
        """All attacks of all families."""
        return tuple(name for members in self.families.values() for name in members)

    def before(self, attacks: Sequence[str], among: Sequence[str]) -> tuple[str, ...]:
        """Return those that stand behind none of some attacks in a chain, and so saw all that these saw.

        Empty where they are too weak to compare with: fewer than `STRONG` steps each.
        """
        chains = self.record.chains.values()
        found = tuple(other for other in among if not any(_follows(other, name, chains) for name in attacks))
        return found if is_strong(self.record, found) else ()

    def left(self, attacks: Sequence[str]) -> NDArray[np.bool_]:
        """Return (N,) which samples are right unattacked and withstand some attacks."""
        return self.record.worst_case((CLEAN, *attacks))

    def row(self, attack: str) -> NDArray[np.int8]:
        """Return (N,) an attack's outcomes."""
        outcome: NDArray[np.int8] = self.record.outcome[self.record.attacks.index(attack)]
        return outcome


class Rule(NamedTuple):
    """One rule.

    Attributes:
        name: of the rule.
        measured: what it measures.
        limit: above which that is a sign of masking, in words.
        why: it is one.
        source: who says so.
        look: finds its evidence.
    """

    name: str
    measured: str
    limit: str
    why: str
    source: str
    look: Callable[[Facts], Iterator[Evidence]]


def is_strong(record: EvaluationRecord, attacks: Sequence[str]) -> bool:
    """Tell whether one of these attacks takes enough steps to be compared with."""
    return any(steps_of(record, name) >= STRONG for name in attacks)


def transfer(facts: Facts) -> Iterator[Evidence]:
    """Look what each transfer attack breaks of the samples that it saw and the white-box attacks before it left.

    Attacks behind it in a chain, or adaptive ones in chains of their own, are not before it.
    """
    record = facts.record
    for name in (name for name in record.attacks if is_transfer(record, name)):
        ahead = {other for chain in record.chains.values() if name in chain for other in chain[: chain.index(name)]}
        seeing = [other for other in ahead & set(facts.adaptive) if not is_gradient_free(record, other)]
        before = facts.before((name,), (*facts.white, *seeing))
        row = facts.row(name)
        left = facts.left(before) & (row != NOT_RUN)
        if before and left.any():
            taken, seen = int((left & (row == WRONG)).sum()), int(left.sum())
            text = f"the transfer attack {name} breaks {taken / seen:.1%} of the samples that the white-box attacks "
            yield _evidence(
                "transfer", taken / seen, max(POINT, 1 / seen), f"{text}before it leave ({taken} of {seen})"
            )


def gradient_free(facts: Facts) -> Iterator[Evidence]:
    """Look what each attack by queries takes of all samples beyond AutoAttack."""
    record, n = facts.record, len(facts.record)
    for name in record.attacks:
        base = facts.before((name,), facts.base)
        if not (n and base) or name in facts.base or not is_gradient_free(record, name) or is_transfer(record, name):
            continue
        left = facts.left(base)
        if not left.any():
            continue
        taken = int((left & (facts.row(name) == WRONG)).sum())
        text = f"{name}, which needs no gradient, breaks {taken} of the {int(left.sum())} samples that "
        text += f"{facts.base_name} ({taken / n:.1%} of all)"
        yield _evidence("gradient-free", taken / n, max(POINT, 1 / n), text)


def adaptive(facts: Facts) -> Iterator[Evidence]:
    """Look what the adaptive attacks, all families together, take of all samples beyond AutoAttack."""
    base, n = facts.before(facts.adaptive, facts.base), len(facts.record)
    if not (n and base and facts.families):
        return
    left = facts.left(base)
    if not left.any():
        yield _evidence("adaptive", 0.0, POINT, f"{facts.base_name} none of the {n} samples to the adaptive attacks")
        return
    low, high = wilson(int(left.sum()), n)
    limit = max(POINT, (high - low) / 2)
    taken = {
        family: left & (np.stack([facts.row(name) for name in members]) == WRONG).any(axis=0)
        for family, members in facts.families.items()
    }
    count = int(np.stack(list(taken.values())).any(axis=0).sum())
    most = max(taken, key=lambda family: int(taken[family].sum()))
    alone = f", {most} alone {int(taken[most].sum())}" if count else ""
    bound = f"{limit:.1%}, half of the interval" if limit > POINT else f"{limit:.0%}"
    text = f"of the {int(left.sum())} samples that {facts.base_name}, the adaptive attacks break {count} "
    text += f"({count / n:.1%} of all{alone}), {'more' if _exceeds(count / n, limit) else 'no more'} than {bound}"
    yield _evidence("adaptive", count / n, limit, text)


def checks(facts: Facts) -> Iterator[Evidence]:
    """Look which checks failed that only misleading gradients fail."""
    for evidence, finding in _failed(facts.record.findings):
        # a weak attack loses to one without gradients on a sound network, too
        if finding.check != "gradient-free" or is_strong(facts.record, finding.attacks):
            yield evidence


def failed_checks(findings: Sequence[Finding]) -> Iterator[Evidence]:
    """Yield a sign for each finding that fails one of `SIGNS`, in their order."""
    return (evidence for evidence, _ in _failed(findings))


def _failed(findings: Sequence[Finding]) -> Iterator[tuple[Evidence, Finding]]:
    failed = [finding for finding in findings if finding.verdict == "fail" and finding.check in SIGNS]
    for finding in sorted(failed, key=lambda finding: SIGNS.index(finding.check)):
        text = f"the check {finding.check} fails with {finding.value:.3g}: {finding.text}"
        yield Evidence("checks", True, finding.value, None, text), finding


def _evidence(rule: str, share: float, limit: float, text: str) -> Evidence:
    return Evidence(rule, _exceeds(share, limit), share, limit, text)


def _exceeds(share: float, limit: float) -> bool:
    return share > limit + 1e-9  # rounding aside


def _follows(one: str, other: str, chains: Iterable[Sequence[str]]) -> bool:
    return any(one in chain and other in chain and chain.index(one) > chain.index(other) for chain in chains)


RULES = (
    Rule(
        "transfer",
        "of the samples that a transfer attack saw, right unattacked and withstanding every white-box attack before it "
        f"(one of at least {STRONG} steps among these), the share that it breaks",
        f"more than {POINT:.0%}, and more than one sample",
        "an attack that never asks the network finds what those that follow its gradient do not",
        "METHOD §7 A7; Athalye et al., 2018, arXiv:1802.00420, §3.1",
        transfer,
    ),
    Rule(
        "gradient-free",
        f"the share of all samples that an attack by queries takes beyond AutoAttack (or, without it, beyond the "
        f"gradient attacks, one of at least {STRONG} steps among them)",
        f"more than {POINT:.0%}, and more than one sample",
        "queries alone search worse than queries and gradients, unless gradients mislead",
        "METHOD §7 A10; Carlini et al., 2019, arXiv:1902.06705, §5",
        gradient_free,
    ),
    Rule(
        "adaptive",
        "the share of all samples that the adaptive attacks, all families together, take beyond AutoAttack (or the "
        "gradient attacks, as above)",
        f"more than half of the width of Wilson's 95 % interval of AutoAttack's accuracy, and more than {POINT:.0%}",
        "AutoAttack knows nothing of the defence; what knowing it gains beyond chance was hidden from AutoAttack",
        "METHOD §7 A1 to A10; Tramèr et al., 2020, arXiv:2002.08347",
        adaptive,
    ),
    Rule(
        "checks",
        "the checks " + ", ".join(SIGNS),
        "one fails, by the limits in its own paragraph",
        "sound gradients lead an attack further with more steps and a larger radius, and further than chance",
        "Athalye et al., 2018, arXiv:1802.00420, §3.1",
        checks,
    ),
)
