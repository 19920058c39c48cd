"""A run's figures by name, as an index of many runs shows them: validation, and each record's worst case."""

from pathlib import Path

from fsr_lab.core.record import CLEAN, PAPER_FOUR, EvaluationRecord
from fsr_lab.report.figures import read_curves

VALIDATION = "val/robust_acc"
OBJECTIVE = f"{VALIDATION}_best"
"""What tuning raises."""


def results(run: Path) -> dict[str, float]:
    """Return {name: share in [0, 1]} of what a run's directory holds.

    `val/robust_acc_best` and `_last` are of its validation; `test/natural_last` and `test/robust_last` of the record
    called last, and so on: robust is Ensemble where the paper's four were run, else the worst case over all attacks.
    """
    found: dict[str, float] = {}
    if curve := read_curves(run).get(VALIDATION):
        found |= {OBJECTIVE: max(curve.values()), f"{VALIDATION}_last": curve[max(curve)]}
    for path in sorted((run / "records").glob("*.json")):
        record = EvaluationRecord.load(path)
        found[f"test/natural_{path.stem}"] = float(record.correct(CLEAN).mean())
        if attacks := PAPER_FOUR if set(PAPER_FOUR) <= set(record.attacks) else record.attacks[1:]:
            found[f"test/robust_{path.stem}"] = float(record.worst_case(attacks).mean())
    return found
