"""Whether a record's robustness is real: one of three words, and the evidence."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from fsr_lab.core.record import EvaluationRecord, Finding
from fsr_lab.report.verdict_rules import RULES, Evidence, Facts, failed_checks

Kind = Literal["masked", "no sign of masking", "not tested"]

CURE = "give evaluation=adaptive"


class Verdict(NamedTuple):
    """What is to be thought of a robustness number.

    Attributes:
        kind: the word.
        sentence: the word and what it rests on.
        evidence: all that was found, the strongest first.
    """

    kind: Kind
    sentence: str
    evidence: tuple[Evidence, ...]


def verdict(record: EvaluationRecord) -> Verdict:
    """Judge a record by `RULES`, from its outcomes and findings alone.

    The strongest evidence is what is most times its limit; failed checks, whose limits are of other kinds, come after.
    """
    facts = Facts.of(record)
    found = sorted((evidence for rule in RULES for evidence in rule.look(facts)), key=_rank)
    if any(evidence.is_sign for evidence in found):
        return _said("masked", found[0].text, found)
    against = [evidence for evidence in found if evidence.rule == "adaptive"]
    if against:
        return _said("no sign of masking", against[0].text, found)
    if facts.families and len(record):
        return _said("not tested", f"there is no AutoAttack to compare the adaptive attacks with; {CURE}", found)
    return _said("not tested", f"no adaptive attack was run; {CURE}", found)


def verdict_of_checks(findings: Sequence[Finding]) -> Verdict:
    """Judge a network that was examined and not attacked."""
    found = list(failed_checks(findings))
    if found:
        return _said("masked", found[0].text, found)
    return _said("not tested", f"no check speaks of masking, and no adaptive attack was run; {CURE}", found)


def rules_table() -> str:
    """Return the rules as a Markdown table."""
    lines = ["| rule | measured | a sign of masking | why | source |", "|---|---|---|---|---|"]
    lines += [f"| {rule.name} | {rule.measured} | {rule.limit} | {rule.why} | {rule.source} |" for rule in RULES]
    return "\n".join(lines) + "\n"


def _said(kind: Kind, text: str, found: Sequence[Evidence]) -> Verdict:
    return Verdict(kind, f"{kind}: {text}", tuple(found))


def _rank(evidence: Evidence) -> tuple[bool, float]:
    times = 0.0 if evidence.limit is None else evidence.share / evidence.limit
    return not evidence.is_sign, -times
