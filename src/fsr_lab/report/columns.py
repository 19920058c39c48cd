"""The columns of a robustness table: which attacks each rests on, and what a record says in it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fsr_lab.core.attack_kinds import adaptive_families
from fsr_lab.core.record import CLEAN, NOT_RUN, PAPER_FOUR, WRONG, EvaluationRecord, Finding
from fsr_lab.report.interval import Interval, wilson

HEADINGS = {
    CLEAN: "Natural", "fgsm": "FGSM", "pgd20": "PGD-20", "pgd100": "PGD-100", "cw30": "C&W", "apgd_ce": "APGD-CE",
    "apgd_t": "APGD-T", "apgd_dlr": "APGD-DLR", "apgd_ce_eot": "APGD-CE EoT", "apgd_dlr_eot": "APGD-DLR EoT",
    "fab": "FAB", "fab_t": "FAB-T", "square": "Square", "nattack": "𝒩Attack",
    "nattack_stochastic": "𝒩Attack, noisy", "spsa": "SPSA", "mifgsm": "MI-FGSM",
    "ti_fgsm": "TI-FGSM", "di_fgsm": "DI-FGSM", "transfer_ti": "TI-FGSM transfer", "transfer_di": "DI-FGSM transfer",
    "transfer_mi": "MI-FGSM transfer", "pgd50_rs10": "PGD-50 ×10", "pgd1000": "PGD-1000 ×10",
    "mt_margin100": "MT margin", "autoattack": "AutoAttack", "autoattack_rand": "AutoAttack rand",
    "worst case": "Worst case", "adaptive": "Adaptive worst case",
    **{f"a{number}": f"A{number}" for number in range(1, 11)},
}  # fmt: skip
"""How a table calls attacks, families and chains; another is called by its own name."""
ENSEMBLE, ENSEMBLE_AND_CLEAN = "Ensemble", "Ensemble ∧ clean"
SIGNS = (
    "gradients", "falls-with-eps", "falls-with-steps", "noise", "gradient-free", "more-steps", "fgsm", "eps-ladder",
    "loss-rises", "black-box", "thousand-steps",
)  # fmt: skip
"""Checks whose failure says that gradients mislead, the plainest first."""
DAGGER = "†"
PART = "+"
"""Begins the heading of a part of a chain."""


class Value(NamedTuple):
    """One accuracy: how many of n samples, the interval of the share, and whether a failed check touches it."""

    correct: int
    n: int
    interval: Interval
    is_doubtful: bool = False

    def __str__(self) -> str:
        interval = f"[{100 * self.interval.low:.1f}, {100 * self.interval.high:.1f}]"
        return f"{self.percent:.2f}{self.mark} {interval}"

    @property
    def percent(self) -> float:
        """The share in percent."""
        return 100 * self.correct / self.n

    @property
    def mark(self) -> str:
        """A dagger at a number that a failed check touches."""
        return DAGGER if self.is_doubtful else ""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column; the same in two records where it was asked for alike, whichever attacks then concerned the networks.

    Attributes:
        heading: what stands over it.
        asked: the attacks and families that it rests on.
        attacks: these in the record: a sample counts where it withstood all of them.
    """

    heading: str
    asked: tuple[str, ...]
    attacks: tuple[str, ...] = field(compare=False)

    def is_known_of(self, record: EvaluationRecord) -> bool:
        """Tell whether each of a record's samples lost to one of the attacks or was attacked by all of them."""
        outcome = record.outcome[[record.attacks.index(name) for name in self.attacks]]
        return not ((outcome == NOT_RUN).any(axis=0) & ~(outcome == WRONG).any(axis=0)).any()


def columns_of(record: EvaluationRecord) -> list[Column]:
    """Return a record's columns: Natural, the attacks, both Ensembles, and each chain, part by part and whole.

    A family is one part of a chain, whatever the number of its attacks.
    """
    chained = {attack for chain in record.chains for name in record.order(chain).own for attack in record.members(name)}
    found = [_column(record, named(attack), (attack,)) for attack in record.attacks if attack not in chained]
    if set(PAPER_FOUR) <= set(record.attacks):
        ensembles = ((ENSEMBLE, PAPER_FOUR), (ENSEMBLE_AND_CLEAN, (CLEAN, *PAPER_FOUR)))
        columns = [_column(record, heading, attacks) for heading, attacks in ensembles]
        found += [column for column in columns if column.is_known_of(record)]
    for chain in sorted(record.chains, key=lambda chain: _began(record, chain)):
        before, own = record.order(chain)
        for place, name in enumerate(own, start=1):
            if record.members(name):
                found.append(_column(record, f"{PART}{named(name)}", (CLEAN, *before, *own[:place])))
        if own != (chain,):
            found.append(_column(record, named(chain), (CLEAN, *before, *own)))
    return list(dict.fromkeys(found))  # a family within a chain is a part of it, and a chain too


def named(name: str) -> str:
    """Return what a table calls an attack, a family or a chain."""
    return HEADINGS.get(name, name)


def united(records: Sequence[EvaluationRecord]) -> tuple[Column, ...]:
    """Return the columns of several records: attacks in the order they are met in, then Ensembles, then chains."""
    found = dict.fromkeys(column for record in records for column in columns_of(record))
    return tuple(sorted(found, key=_rank))


def steps(columns: Sequence[Column]) -> set[Column]:
    """Return the columns that are a part of a longer chain among them: a table for reading shows the whole alone."""
    parts = [column for column in columns if column.heading.startswith(PART)]
    return {
        part for part in parts
        if any(other != part and other.asked[: len(part.asked)] == part.asked for other in columns)
    }  # fmt: skip


def value(record: EvaluationRecord, column: Column) -> Value | None:
    """Return what a record says in a column, or None where it says nothing."""
    own = own_column(record, column)
    if own is None:
        return None
    correct, n = int(record.worst_case(own.attacks).sum()), len(record)
    is_doubtful = any(finding.verdict == "fail" and _touches(finding, own, record) for finding in record.findings)
    return Value(correct, n, wilson(correct, n), is_doubtful)


def own_column(record: EvaluationRecord, column: Column) -> Column | None:
    """Return a column with the attacks that it rests on in a record, or None where the record does not have it."""
    return next((own for own in columns_of(record) if own == column), None)


def limits_of(record: EvaluationRecord, column: Column) -> dict[str, int]:
    """Return the limits of the attacks and families that a column rests on."""
    return {name: limit for name, limit in record.limits.items() if name in column.asked}


def limited_name(name: str, samples: int) -> str:
    """Return the name of an attack or family with what it was run on."""
    return f"{named(name)} on at most {samples} of the samples left in each chunk"


def _touches(finding: Finding, column: Column, record: EvaluationRecord) -> bool:
    """Tell whether what a failed check found makes a column's number doubtful.

    Gradients that mislead do so neither without an attack nor where adaptive attacks are among them: those are what the
    check asks for. Noise of the network's own is in every number.
    """
    if finding.check in SIGNS and finding.check != "noise":
        adaptive = {name for members in adaptive_families(record).values() for name in members}
        if column.attacks == (CLEAN,) or adaptive & set(column.attacks):
            return False
    return not finding.attacks or bool(set(finding.attacks) & set(column.attacks))


def _began(record: EvaluationRecord, chain: str) -> tuple[int, int]:
    """Return what sorts chains in the order of work: a record on disk has them by name."""
    before, own = record.order(chain)
    places = [record.attacks.index(attack) for name in own for attack in record.members(name)]
    return len(before), min(places, default=len(record.attacks))


def _column(record: EvaluationRecord, heading: str, asked: tuple[str, ...]) -> Column:
    attacks = tuple(attack for name in asked for attack in record.members(name))
    return Column(heading=heading, asked=asked, attacks=attacks)


def _rank(column: Column) -> int:
    if column.heading in (ENSEMBLE, ENSEMBLE_AND_CLEAN):
        return 1 + (column.heading == ENSEMBLE_AND_CLEAN)
    return 0 if len(column.asked) == 1 else 3
