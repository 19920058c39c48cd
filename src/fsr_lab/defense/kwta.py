"""k-Winners-Take-All (Xiao et al., ICLR 2020, arXiv:1905.10510)."""

from typing import ClassVar, Literal, get_args

from torch import Tensor

from fsr_lab.core.defense import FeatureDefense
from fsr_lab.core.route import Route, with_gradient_of
from fsr_lab.core.suggest import unknown
from fsr_lab.core.types import DefenseOutput, FeatureShape

Over = Literal["space", "volume"]


class KWTA(FeatureDefense):
    """Keeps the k largest activations of a group and sets the others to zero; stands in an activation's place.

    Activations equal to the k-th largest are all kept, so that ties keep more than k. Winners pass as they are,
    negative ones too: this is no ReLU. The same in training and evaluation; no labels, no loss, no auxiliary
    tensors. The map is discontinuous and its gradient only tells how the present winners move: a gradient attack
    alone says little, judge it by gradient-free ones too.

    Routes: in the backward pass, "straight_through" takes the map for the identity, "relu" for the ReLU whose place it
    has. Values stay as they are.

    Args:
        shape: of the feature; not used, k follows the features at hand.
        num_classes: not used.
        ratio: the share that is kept; k is ratio times the group's size rounded down, and at least 1.
        over: the group: "space", the H W activations of each channel, or "volume", all C H W of a sample.

    Raises:
        ValueError: a ratio outside (0, 1], an unknown group.
    """

    routes: ClassVar[frozenset[str]] = frozenset({"f_tilde", "straight_through", "relu"})

    def __init__(self, shape: FeatureShape, num_classes: int, *, ratio: float = 0.2, over: Over = "space") -> None:
        super().__init__()
        if not 0 < ratio <= 1:
            raise ValueError(f"expected ratio in (0, 1], got {ratio}")
        if over not in get_args(Over):
            raise ValueError(unknown("kWTA group", over, get_args(Over)))
        self.ratio = ratio
        self.over = over

    def forward(
        self,
        features: Tensor,
        targets: Tensor | None = None,
        *,
        route: Route | None = None,
        want_aux: bool = True,
    ) -> DefenseOutput:
        """Keep the winners of (N, C, H, W) features; see `FeatureDefense.forward`. Labels are not used."""
        groups = features.flatten(2 if self.over == "space" else 1)
        winners = groups.detach().topk(self.count(groups.shape[-1]), dim=-1, sorted=False).values
        losers = (groups < winners.amin(-1, keepdim=True)).reshape(features.shape)
        # filled, where a product would turn an infinite loser into NaN; and a NaN is no loser: it must be seen
        kept = features.masked_fill(losers, 0)
        if route is not None and route.mask_gradient != "exact":
            kept = with_gradient_of(features.relu() if route.mask_gradient == "relu" else features, kept)
        return DefenseOutput(kept, {})

    def count(self, size: int) -> int:
        """Return k for a group of `size` activations."""
        # 0.29 * 100 is 28.999999999999996 in binary, and means 29
        return max(int(self.ratio * size + 1e-9), 1)
