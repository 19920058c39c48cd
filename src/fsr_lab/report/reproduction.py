"""A run beside the one that was made again from it: whether the outcome is the same."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from fsr_lab.core.files import write_text
from fsr_lab.core.record import EvaluationRecord
from fsr_lab.report.paired import Comparison, compare

Kind = Literal["identical", "within noise", "different", "not comparable"]
PAGE = "reproduction.md"


class Reproduction(NamedTuple):
    """What came of it.

    Attributes:
        kind: the word.
        sentence: the word and what it rests on.
        differences: between then and now, as far as known beforehand.
        comparisons: of the records that both runs have.
    """

    kind: Kind
    sentence: str
    differences: tuple[str, ...]
    comparisons: tuple[Comparison, ...]

    def write(self, folder: Path) -> Path:
        """Write `reproduction.md` and return its path."""
        listed = [f"- {line}" for line in self.differences] or ["None."]
        parts = ["# Reproduction\n", f"{self.sentence}\n", "## Differences\n", *listed, ""]
        if self.comparisons:
            parts += ["## Outcome\n", *[comparison.markdown() for comparison in self.comparisons]]
        write_text(folder / PAGE, "\n".join(parts))
        return folder / PAGE


def judge(first: Path, second: Path, *, same_weights: bool | None, differences: Sequence[str]) -> Reproduction:
    """Compare two runs' outcomes, record by record.

    Identical are equal weights with equal outcomes of every sample under every attack. Otherwise each shared column is
    compared sample by sample: within noise is where each difference's 95 % interval holds zero.

    Args:
        first: the original run.
        second: the one made again.
        same_weights: whether their weights are the same; None where that cannot be told.
        differences: see `Reproduction`.
    """
    old, new = _records(first), _records(second)
    shared = [name for name in old if name in new]
    if same_weights is None and shared:
        same_weights = all(_weights(old[name]) == _weights(new[name]) for name in shared)
    try:
        found = [compare(old[name], new[name]) for name in shared]
    except ValueError as err:  # other data, other samples: nothing can be said of the outcome
        return Reproduction("not comparable", f"not comparable: {err}", tuple(differences), ())
    comparisons = tuple(comparison for comparison in found if comparison.columns)
    equal = all(_same_outcome(old[name], new[name]) for name in shared)
    return Reproduction(*_judged(comparisons, same_weights, equal), tuple(differences), comparisons)


def _judged(comparisons: Sequence[Comparison], same_weights: bool | None, equal: bool) -> tuple[Kind, str]:
    if same_weights and equal:
        count = len(comparisons)
        also = f"every outcome of every sample in {count} record(s)" if count else "there is no record to compare"
        return "identical", f"identical: the same weights, and {also}"
    if not comparisons:
        found = "other weights" if same_weights is False else "no weights to compare"
        return "not comparable", f"not comparable: {found}, and no record of one name in both runs"
    columns = [column for comparison in comparisons for column in comparison.columns]
    apart = [column for column in columns if not column.interval.low <= 0 <= column.interval.high]
    widest = max(columns, key=lambda column: abs(column.difference))
    far = f"{widest.heading} by {100 * widest.difference:+.2f} points [{100 * widest.interval.low:.2f}, "
    far += f"{100 * widest.interval.high:.2f}]"
    if apart:
        names = ", ".join(dict.fromkeys(column.heading for column in apart))
        return "different", f"different: beyond noise in {names}; the furthest is {far}"
    which = "the same weights" if same_weights else "other weights"
    return "within noise", f"within noise: {which}; the furthest is {far}"


def _records(run: Path) -> dict[str, EvaluationRecord]:
    return {path.stem: EvaluationRecord.load(path) for path in sorted((run / "records").glob("*.json"))}


def _weights(record: EvaluationRecord) -> str | None:
    return record.provenance.hashes.get("weights")


def _same_outcome(first: EvaluationRecord, second: EvaluationRecord) -> bool:
    return first.attacks == second.attacks and bool((first.outcome == second.outcome).all())
