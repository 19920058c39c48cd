"""What is exported: a trained network, what it is made of, and what is to be said of it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fsr_lab.core.record import EvaluationRecord
from fsr_lab.core.threat import Threat
from fsr_lab.export.blueprint import Blueprint
from fsr_lab.model.defended import DefendedModel

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
"""A name that is a function of a model file, too."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """A trained network and its facts.

    Attributes:
        name: of letters, digits and underscores.
        model: in eval mode, on the CPU.
        blueprint: what it is made of.
        threat: what it was trained against.
        dataset: what it was trained on.
        label: its method, as a table calls it.
        architecture: its backbone, as a table calls it.
        recipe: {what: how}, of the training.
        data: {what: how}, of the images.
        provenance: {what: how}, of the run.
        records: evaluations of these very weights.
        licence: SPDX identifier.
        paper: {"title", "authors", "link", "venue"}, "" where not given.

    Raises:
        ValueError: the name has other characters.
    """

    name: str
    model: DefendedModel
    blueprint: Blueprint
    threat: Threat
    dataset: str
    label: str
    architecture: str
    licence: str
    recipe: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)
    records: tuple[EvaluationRecord, ...] = ()
    paper: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"expected a name of letters, digits and underscores, a letter first, got {self.name!r}")

    @property
    def headline(self) -> str:
        """Method, backbone and data, in characters that a docstring may hold."""
        return re.sub(r"[^\w\s+*().,:/-]", "", f"{self.label}, {self.architecture}, trained on {self.dataset}")

    @property
    def state(self) -> dict[str, Tensor]:
        """The network's weights and statistics, each with memory of its own."""
        return {name: tensor.detach().clone().contiguous() for name, tensor in self.model.state_dict().items()}
