"""How far an attack moves the features of each layer: with and without a defence, the place where it is stopped."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from fsr_lab.analysis.study import Findings, Study
from fsr_lab.core.crafting import judging
from fsr_lab.core.types import Attack
from fsr_lab.model.points import find_module


@dataclass(frozen=True, kw_only=True)
class FeatureDistance:
    """Compares each layer's output on the attacked and on the clean image, as the network passes it on.

    Arrays: `relative` float32 (L, N), ||F(x') - F(x)|| / ||F(x)||, and `cosine` float32 (L, N) between the two, of the
    flattened features, NaN where F(x) is nought; `fooled` bool (N,), right unattacked and wrong under attack. Settings:
    `layers`, the names of the L.

    Args:
        attack: on the deployed network.
        layers: module names of the backbone, in the order of a table.
    """

    attack: Attack
    layers: Sequence[str]

    def __call__(self, study: Study) -> Findings:
        """Return the distances.

        Raises:
            ValueError: no layer is named, or one that the backbone does not have.
        """
        if not self.layers:
            raise ValueError("this model's config names no stages; give analysis.layers=[...]")
        relative, cosine, fooled = [], [], []
        for x, x_adv, y in study.attacked(self.attack, "distances"):
            with judging(study.model), reading(study.model.backbone, self.layers) as read:
                right = study.model(x).argmax(1) == y
                clean = dict(read)
                wrong = study.model(x_adv).argmax(1) != y
                pairs = [(clean[layer].flatten(1), read[layer].flatten(1)) for layer in self.layers]
            # of a feature that is nought there is no relative change and no direction: 0 / 0
            relative.append(torch.stack([(moved - own).norm(dim=1) / own.norm(dim=1) for own, moved in pairs]))
            lengths = [own.norm(dim=1) * moved.norm(dim=1) for own, moved in pairs]
            inner = [(own * moved).sum(dim=1) for own, moved in pairs]
            cosine.append(torch.stack([above / below for above, below in zip(inner, lengths, strict=True)]))
            fooled.append(right & wrong)
        arrays = {
            "relative": torch.cat(relative, dim=1).cpu().numpy(),
            "cosine": torch.cat(cosine, dim=1).cpu().numpy(),
            "fooled": torch.cat(fooled).cpu().numpy(),
        }
        return Findings(arrays, {"layers": list(self.layers), "attack": repr(self.attack)})


@contextmanager
def reading(backbone: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Yield a dict that holds, after every forward, each layer's output (float32), behind a defence at its output."""
    read: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        read[name] = output.detach().float().clone()

    handles = [find_module(backbone, layer).register_forward_hook(partial(keep, layer)) for layer in layers]
    try:
        yield read
    finally:
        for handle in handles:
            handle.remove()
