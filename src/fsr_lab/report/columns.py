"""The columns of a robustness table: which attacks each rests on, and what a record says in it."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fsr_lab.core.record import CLEAN, NOT_RUN, PAPER_FOUR, WRONG, EvaluationRecord
from fsr_lab.report.interval import Interval, wilson

HEADINGS = {
    CLEAN: "Natural", "fgsm": "FGSM", "pgd20": "PGD-20", "pgd100": "PGD-100", "cw30": "C&W", "apgd_ce": "APGD-CE",
    "apgd_t": "APGD-T", "apgd_dlr": "APGD-DLR", "apgd_ce_eot": "APGD-CE EoT", "apgd_dlr_eot": "APGD-DLR EoT",
    "fab": "FAB", "fab_t": "FAB-T", "square": "Square", "nattack": "𝒩Attack", "spsa": "SPSA", "mifgsm": "MI-FGSM",
    "ti_fgsm": "TI-FGSM", "di_fgsm": "DI-FGSM", "transfer_ti": "TI-FGSM transfer", "transfer_di": "DI-FGSM transfer",
    "transfer_mi": "MI-FGSM transfer", "pgd50_rs10": "PGD-50 ×10", "pgd1000": "PGD-1000 ×10",
    "mt_margin100": "MT margin", "autoattack": "AutoAttack", "autoattack_rand": "AutoAttack rand",
    "worst case": "Worst case",
}  # fmt: skip
"""How a table calls attacks and chains; another is called by its own name."""
ENSEMBLE, ENSEMBLE_AND_CLEAN = "Ensemble", "Ensemble ∧ clean"
DAGGER = "†"


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


class Column(NamedTuple):
    """One column.

    Attributes:
        heading: what stands over it.
        attacks: a sample counts where it withstood all of these.
    """

    heading: str
    attacks: tuple[str, ...]

    def is_known_of(self, record: EvaluationRecord) -> bool:
        """Tell whether each of a record's samples lost to one of the attacks or was attacked by all of them."""
        outcome = record.outcome[[record.attacks.index(name) for name in self.attacks]]
        return not ((outcome == NOT_RUN).any(axis=0) & ~(outcome == WRONG).any(axis=0)).any()


def columns_of(record: EvaluationRecord) -> Iterator[Column]:
    """Yield a record's columns: Natural, the attacks, both Ensembles, and each chain, member by member and whole."""
    chained = {attack for chain in record.chains.values() for attack in chain}
    for attack in record.attacks:
        if attack not in chained:
            yield Column(HEADINGS.get(attack, attack), (attack,))
    if set(PAPER_FOUR) <= set(record.attacks):
        for heading, attacks in ((ENSEMBLE, PAPER_FOUR), (ENSEMBLE_AND_CLEAN, (CLEAN, *PAPER_FOUR))):
            column = Column(heading, attacks)
            if column.is_known_of(record):
                yield column
    for name, chain in record.chains.items():
        for place, attack in enumerate(chain):
            yield Column(f"+{HEADINGS.get(attack, attack)}", (CLEAN, *chain[: place + 1]))
        yield Column(HEADINGS.get(name, name), (CLEAN, *chain))


def united(records: Sequence[EvaluationRecord]) -> tuple[Column, ...]:
    """Return the columns of several records: attacks in the order they are met in, then Ensembles, then chains."""
    found = dict.fromkeys(column for record in records for column in columns_of(record))
    return tuple(sorted(found, key=_rank))


def value(record: EvaluationRecord, column: Column) -> Value | None:
    """Return what a record says in a column, or None where it says nothing."""
    if column not in set(columns_of(record)):
        return None
    correct, n = int(record.worst_case(column.attacks).sum()), len(record)
    touched = any(
        finding.verdict == "fail" and (not finding.attacks or set(finding.attacks) & set(column.attacks))
        for finding in record.findings
    )
    return Value(correct, n, wilson(correct, n), touched)


def _rank(column: Column) -> int:
    if column.heading in (ENSEMBLE, ENSEMBLE_AND_CLEAN):
        return 1 + (column.heading == ENSEMBLE_AND_CLEAN)
    return 0 if len(column.attacks) == 1 else 3
