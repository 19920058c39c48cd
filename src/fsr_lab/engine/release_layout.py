"""State dicts in the layouts of other people's releases, put under our names.

Known are the networks of FSR (wkim97/FSR), TRADES (yaodongyu/TRADES), MART (YisenWang/MART) and, for the
pre-activation ResNet, of Rice et al. (locuslab/robust_overfitting): what each calls its layers is data, below.
RobustBench's zoo holds weights in these layouts, some with the constants of a normalisation among them.
"""

import re
from collections.abc import Mapping
from operator import sub
from typing import cast

from torch import Tensor, nn

from fsr_lab.model.normalize import Normalize
from fsr_lab.model.preact_resnet import PreActResNet
from fsr_lab.model.resnet import ResNet
from fsr_lab.model.vgg import VGG
from fsr_lab.model.wide_resnet import WideResNet

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
"""Keys under which training scripts keep the weights beside an optimiser's state, an epoch, an accuracy."""

PREFIXES = ("module.", "model.", "1.")
"""What DataParallel and wrapping modules put before every name; 1 is a network behind its normalisation."""

NORMALIZATION = re.compile(r"^(?:module\.)?(?:0\.|normalize\.|normalizer\.)?(?:(mean|mu)|(std|sigma))$")
"""What releases call the constants of a normalisation that is a part of the network."""

Names = tuple[tuple[str, str | None], ...]
"""(pattern of a released name, ours), applied in turn; None drops the entry."""

BACKBONES: Mapping[type[nn.Module], Names] = {
    ResNet: ((r"^linear\.", "fc."),),
    PreActResNet: ((r"^linear\.", "fc."), (r"\.shortcut\.0\.", ".shortcut.")),
    # the released blocks count from 0 and number their layers: convolution, BatchNorm, ReLU, convolution, ...
    VGG: tuple(
        (rf"^block{block}\.{3 * index + offset}\.", f"block{block + 1}.{kind}{index + 1}.")
        for block in range(5)
        for index in range(3)
        for offset, kind in enumerate(("conv", "bn"))
    ),
    # sub_block1 is a second copy of the first group, which no forward pass of theirs calls
    WideResNet: (
        (r"^sub_block1\.", None),
        (r"^(block\d)\.layer\.", r"\1."),
        (r"\.convShortcut\.", ".shortcut."),
    ),
}

FSR: Names = (
    (r"^separation\.sep_net\.", "separation."),
    (r"^recalibration\.rec_net\.", "recalibration."),
    (r"^aux\.0\.", "aux_head."),
)
"""The released defence's parts, which lie in the network beside its layers."""


def unwrapped(content: object) -> object:
    """Return the state dict that a checkpoint holds under one of the usual keys, or the content itself."""
    if isinstance(content, Mapping):
        for key in WRAPPERS:
            if isinstance(content.get(key), Mapping):
                return cast(object, content[key])
    return content


def without_normalization(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict without the constants of its normalisation, which must be those of the model.

    Raises:
        ValueError: the model normalises by others, or not at all; the message gives the override that it needs.
    """
    own = set(model.state_dict())
    found: dict[str, list[float]] = {}
    for name, value in state.items():
        if (match := NORMALIZATION.match(name)) and name not in own:
            found["mean" if match[1] else "std"] = [round(float(number), 6) for number in value.flatten()]
    layers = [layer for layer in model.modules() if isinstance(layer, Normalize)]
    ours = {name: [float(number) for number in getattr(layer, name)] for layer in layers for name in ("mean", "std")}
    for name, values in found.items():
        if len(ours.get(name, ())) != len(values) or max(map(abs, map(sub, ours[name], values))) > 1e-4:
            given = ", ".join(f"{key}: {numbers}" for key, numbers in sorted(found.items()))
            raise ValueError(
                f"these weights are of a network that normalises its images; give model.normalize='{{{given}}}'"
            )
    return {name: value for name, value in state.items() if name in own or not NORMALIZATION.match(name)}


def translated(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict under the names of a defended model; names that are ours, or unknown, stay.

    Args:
        model: with its network as `backbone` and its defences in `taps`; or a bare network.
        state: a state dict of it, of its bare network, or of that network in one of the known layouts.
    """
    while any(state and all(name.startswith(prefix) for name in state) for prefix in PREFIXES):
        state = {name.partition(".")[2]: value for name, value in state.items()}
    backbone = getattr(model, "backbone", model)
    if backbone is model or any(name.startswith("backbone.") for name in state):
        return dict(state)
    taps = list(cast(nn.ModuleDict, model.taps)) if hasattr(model, "taps") else []
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        defense = _renamed(name, FSR)
        layer = _renamed(name, BACKBONES.get(type(backbone), ()))
        if defense != name and len(taps) == 1:
            found[f"taps.{taps[0]}.defense.{defense}"] = value
        elif layer is not None:
            found[f"backbone.{layer}"] = value
    return _counted(model, found)


def _renamed(name: str, names: Names) -> str | None:
    for pattern, ours in names:
        if ours is None and re.search(pattern, name):
            return None
        name = re.sub(pattern, ours or "", name)
    return name


def _counted(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add BatchNorm's counts of batches where a release is older than they are; no forward pass reads them here."""
    counts = {
        name: value for name, value in model.state_dict().items()
        if name.endswith(".num_batches_tracked") and f"{name.rpartition('.')[0]}.running_mean" in state
    }  # fmt: skip
    return counts | state
