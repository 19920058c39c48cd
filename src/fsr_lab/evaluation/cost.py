"""What a network costs: parameters, multiply-accumulates, and FLOPs as the FSR paper counts them."""

from collections.abc import Collection
from typing import Any, Self

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fsr_lab.core.cost import Cost
from fsr_lab.core.suggest import unknown
from fsr_lab.model.defended import DefendedModel
from fsr_lab.model.points import meta_twin, parse_point

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
COUNTED = (*CONVOLUTIONS, nn.Linear, *NORMS, nn.ReLU)
"""What costs by its outputs, where pools cost by their inputs."""


def measure(model: DefendedModel, image_shape: tuple[int, int, int], *, functional: Collection[str] = ()) -> Cost:
    """Count a network's cost for one image in evaluation mode, on a meta-device twin: nothing is computed.

    The paper's FLOPs (Kim et al., CVPR 2023, arXiv:2303.13846, Table 7) are twice what a counter that hooks modules
    adds up: multiply-accumulates and bias additions of convolutions and linear layers, two operations for each output
    of a BatchNorm, one for each output of a ReLU module and for each input of a pooling module. What the measured code
    called as a function was not seen; `functional` says what that was where our network has a module.

    Args:
        model: with or without defences (`attach(backbone, {})`); it is left as it is.
        image_shape: (C, H, W).
        functional: names of module classes of the backbone that the paper's FLOPs leave out.

    Raises:
        ValueError: the backbone has no module of such a class.
    """
    twin = meta_twin(model)
    twin.eval()
    images = torch.empty(1, *image_shape, device="meta")
    counted = FlopCounterMode(display=False)
    with torch.no_grad(), counted, _PaperFlops(twin, functional) as paper:
        aux = twin.forward_with_aux(images).aux
    deployed = counted
    if any(aux.values()):  # else there are no heads to leave out
        deployed = FlopCounterMode(display=False)
        with torch.no_grad(), deployed:
            twin(images)
    return Cost(
        parameters=_parameters(twin),
        defense_parameters=sum(_parameters(defense) for defense in twin.defenses.values()),
        flops=paper.flops,
        macs=deployed.get_total_flops() // 2,
        macs_with_aux=counted.get_total_flops() // 2,
    )


class _PaperFlops:
    """Counts while it is open, module by module; see `measure`."""

    def __init__(self, model: DefendedModel, functional: Collection[str]) -> None:
        classes = {type(module).__name__ for module in model.backbone.modules()}
        for name in functional:
            if name not in classes:
                raise ValueError(unknown("module class", name, classes))
        # a defence that stands instead of a module: what it replaces does not run
        replaced = {point.module for point in map(parse_point, model.defenses) if point.place == "instead"}
        unseen = [
            module for name, module in model.backbone.named_modules()
            if name in replaced or type(module).__name__ in functional
        ]  # fmt: skip
        self._modules = [module for module in model.modules() if all(module is not other for other in unseen)]
        self.flops = 0

    def __enter__(self) -> Self:
        self._handles = [module.register_forward_hook(self._add) for module in self._modules]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _add(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.flops += 2 * _operations(module, inputs, output)


def _operations(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> int:
    if isinstance(module, POOLS):
        return int(inputs[0].numel())
    if not isinstance(module, COUNTED):
        return 0
    outputs = int(output.numel())
    if isinstance(module, NORMS):
        return 2 * outputs
    if isinstance(module, nn.ReLU):
        return outputs
    return module.weight[0].numel() * outputs + (0 if module.bias is None else outputs)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
