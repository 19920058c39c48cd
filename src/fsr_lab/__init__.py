"""fsr-lab: Feature Separation and Recalibration, and what it takes to believe it."""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_PUBLIC = {
    "DefendedModel": "fsr_lab.model.defended",
    "EvaluationRecord": "fsr_lab.core.record",
    "FSR": "fsr_lab.defense.fsr",
    "Threat": "fsr_lab.core.threat",
    "attach": "fsr_lab.model.defended",
    "evaluate": "fsr_lab.evaluation.run",
    "load": "fsr_lab.export.loading",
}

__all__ = ["FSR", "DefendedModel", "EvaluationRecord", "Threat", "attach", "evaluate", "load"]

if TYPE_CHECKING:
    from fsr_lab.core.record import EvaluationRecord
    from fsr_lab.core.threat import Threat
    from fsr_lab.defense.fsr import FSR
    from fsr_lab.evaluation.run import evaluate
    from fsr_lab.export.loading import load
    from fsr_lab.model.defended import DefendedModel, attach


def __getattr__(name: str) -> object:
    """Load a public name when it is first asked for, so that importing one part loads that part alone."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'fsr_lab' has no attribute {name!r}; it has {sorted(_PUBLIC)}")
    return getattr(import_module(_PUBLIC[name]), name)
