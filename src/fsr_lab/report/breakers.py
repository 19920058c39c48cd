"""What broke each sample: the first attack of a record's longest chain that got it wrong."""

from collections import Counter
from collections.abc import Sequence

from fsr_lab.core.record import CLEAN, WRONG, EvaluationRecord
from fsr_lab.report.columns import limited_name, named

NOTE = (
    "Each sample counts once, with the first attack of the chain that broke it; those after it did not see it, unless "
    "they were run on every sample. left: of n, after it.\n"
)


def longest_chain(record: EvaluationRecord) -> str | None:
    """Return the chain of the most attacks, rather than the family that it ends with; None where there is no chain."""

    def size(name: str) -> tuple[int, bool]:
        return len(record.chains[name]), record.order(name).own != (name,)

    return max(record.chains, key=size, default=None)


def first_breakers(record: EvaluationRecord, chain: str) -> list[str | None]:
    """Return the first attack of a chain that broke each sample, "clean" if none was needed, None if none did."""
    order = (CLEAN, *record.chains[chain])
    wrong = record.outcome[[record.attacks.index(name) for name in order]] == WRONG
    return [
        order[first] if is_broken else None
        for first, is_broken in zip(wrong.argmax(axis=0), wrong.any(axis=0), strict=True)
    ]


def breakers(records: Sequence[EvaluationRecord]) -> str:
    """Return for each record with a chain a table of how many samples each attack was the first to break."""
    tables = [_table(record, chain) for record in records if (chain := longest_chain(record)) is not None]
    return "\n".join([*tables, NOTE] if tables else [])


def _table(record: EvaluationRecord, chain: str) -> str:
    count = Counter(first_breakers(record, chain))
    left, n = len(record), len(record)
    lines = [f"{record.name}, {named(chain)}:\n", f"| attack | broke first, of {n} | left |", "|---|--:|--:|"]
    idle = []
    before, own = record.order(chain)
    for name in (CLEAN, *before, *own):
        members = record.members(name)
        broken = sum(count[member] for member in members)
        left -= broken
        if not broken:
            idle += [named(name)] if members else []
            continue
        told = limited_name(name, record.limits[name]) if name in record.limits else named(name)
        each = [f"{member.removeprefix(f'{name}/')} {count[member]}" for member in members if count[member]]
        parts = f" ({', '.join(each)})" if members != (name,) else ""
        lines.append(f"| {'wrong unattacked' if name == CLEAN else told}{parts} | {broken} | {left} |")
    if idle:
        lines.append(f"\nNone that was left to them: {', '.join(idle)}.")
    return "\n".join(lines) + "\n"
