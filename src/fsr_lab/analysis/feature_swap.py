"""What a part of the separated features is worth: it goes on alone, without retraining (the paper's Table 5a)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from fsr_lab.analysis.study import Findings, Study
from fsr_lab.attack.transfer import Transfer
from fsr_lab.attack.wrapper import Crafter
from fsr_lab.core.crafting import judging
from fsr_lab.core.record import EvaluationRecord
from fsr_lab.core.route import Part, Route
from fsr_lab.core.types import Attack
from fsr_lab.evaluation.cell import cell_seed
from fsr_lab.evaluation.run import evaluate
from fsr_lab.model.defended import Routed

RANDOM = "random mask"
RESCALED = " rescaled"


@dataclass(frozen=True, kw_only=True)
class FeatureSwap:
    """Feeds g in {f, f+, f-, f~-, f~} to the next layer in the place of f~, and attacks the network that this makes.

    METHOD 6.1. The paper does not say whether the examples are those of the full network or made anew for each part:
    both are recorded, the latter as the number, the former ("examples of the whole") as transfers. A part that breaks
    down may be non-robust, or merely unlike what the next layer was trained on. Two controls tell: the same share of
    units kept by a random mask (fixed, one for all samples), and the part given the norm of f, sample by sample.
    The main head judges all, the auxiliary one none.

    Args:
        parts: that go on in turn; those that an ablation lacks are left out.
        rescaled: parts that go on again with the norm of f.
        random_mask: let a random part of f go on as well, as large as f+ is on the first batch.
        of_the_whole: judge the whole network's examples, too.
        point: of the FSR; None is the only one.
    """

    parts: Sequence[Part] = ("f_tilde", "f_plus", "f_minus", "f_tilde_minus", "f")
    rescaled: Sequence[Part] = ("f_minus", "f_tilde_minus")
    random_mask: bool = True
    of_the_whole: bool = True
    point: str | None = None

    def __call__(self, study: Study) -> Findings:
        """Return one evaluation per part, and per part under the whole network's examples.

        Raises:
            ValueError: there is no such FSR, or no attack to run.
        """
        if not study.attacks:
            raise ValueError("there is no attack to see what a part withstands; give evaluation=paper")
        point = study.site(self.point)
        routes: dict[str, Route] = {part: Route(part=part) for part in study.parts(point, self.parts)}
        routes |= {part + RESCALED: Route(part=part, rescaled=True) for part in study.parts(point, self.rescaled)}
        settings: dict[str, object] = {"point": point}
        if self.random_mask and study.parts(point, ["f_plus"]):
            mask, density = self._random_mask(study, point)
            routes[RANDOM] = Route(part="f_plus", mask=mask)
            settings["density"] = density
        whole = {
            name: Transfer(source=study.model, attack=cast(Crafter, attack), label=study.name)
            for name, attack in study.attacks.items()
        }
        records = {}
        for name, route in routes.items():
            view, stem = study.model.routed({point: route}), name.replace(" ", "_")
            records[stem] = self._evaluated(study, view, route, study.attacks, f"{study.name} feature={name}", stem)
            if self.of_the_whole and name != "f_tilde":  # the whole is its own
                title, stem = f"{study.name} feature={name}, examples of the whole", f"{stem}_of_the_whole"
                records[stem] = self._evaluated(study, view, route, whole, title, stem)
        return Findings({}, settings, records)

    @staticmethod
    def _evaluated(
        study: Study, view: Routed, route: Route, attacks: Mapping[str, Attack], name: str, stem: str
    ) -> EvaluationRecord:
        return evaluate(
            view,
            study.batches(),
            attacks,
            threat=study.threat,
            seed=study.seed,
            chains=study.chains,
            chunk=study.chunk,
            doctor=attacks is study.attacks,  # he has seen the view by then
            ledger=None if study.ledgers is None else study.ledgers / stem,
            name=name,
            command=study.command,
            data_hash=study.data.data_hash,
            about=f"part {route.part}, rescaled {route.rescaled}, random mask {route.mask is not None}",
        )

    @staticmethod
    def _random_mask(study: Study, point: str) -> tuple[Tensor, float]:
        """Return (1, C, H, W) of ones and noughts, as many ones as the mask of the first batch is dense; and that."""
        x, _ = next(iter(study.batches()))
        with judging(study.model):
            mask = study.model.forward_with_aux(x).aux[point]["mask"]
        density = float(mask.double().mean())
        generator = torch.Generator().manual_seed(cell_seed(study.seed, RANDOM, 0))
        return (torch.rand(mask[:1].shape, generator=generator) < density).float().to(study.device), density
