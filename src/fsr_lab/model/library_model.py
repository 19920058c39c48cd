"""Any classifier of torchvision, timm or a torch.hub repository by its name.

Of the first two nothing is downloaded unless `pretrained` asks for it. Networks keep their code, their layers' names
and their state-dict keys.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from fsr_lab.model.points import feature_info

Option = bool | int | float | str | Sequence[int] | None


def from_torchvision(
    name: str,
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    pretrained: bool = False,
    options: Mapping[str, Option] | None = None,
) -> nn.Module:
    """Build a torchvision classifier.

    Torchvision has no argument for the images' channels: for other than three, the first convolution is exchanged
    for a fresh one.

    Args:
        name: as in `torchvision.models.list_models()`.
        num_classes: K.
        in_channels: of the images.
        pretrained: fetch torchvision's weights of ImageNet; the head, and a convolution of other channels, start
            afresh.
        options: further arguments of the network's own constructor, such as `image_size` of the transformers.

    Raises:
        ValueError: an unknown name; a network that returns more than logits in training; no pretrained weights.
    """
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        raise ValueError(_nearest("torchvision", name, names))
    network = cast(nn.Module, models.get_model(name, weights=None, num_classes=num_classes, **dict(options or {})))
    if getattr(network, "aux_logits", False):
        raise ValueError(f"{name} gives auxiliary logits in training; set options to {{aux_logits: false}}")
    _take_channels(network, in_channels)
    if pretrained:
        weights = models.get_model_weights(name)
        if not list(weights):
            raise ValueError(f"torchvision has no weights of {name}; set pretrained=false")
        _load_matching(network, weights.DEFAULT.get_state_dict(progress=True, check_hash=True))
    return network


def from_timm(
    name: str,
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    pretrained: bool = False,
    options: Mapping[str, Option] | None = None,
) -> nn.Module:
    """Build a timm classifier.

    Args:
        name: as in `timm.list_models()`, with or without the tag of its weights.
        num_classes: K.
        in_channels: of the images.
        pretrained: fetch timm's weights; timm fits them to K and the channels.
        options: further arguments of the network's own constructor, such as `img_size` of the transformers.

    Raises:
        ImportError: timm is not installed.
        ValueError: an unknown name.
    """
    try:
        import timm
    except ImportError as err:
        raise ImportError("timm networks need an extra: pip install 'fsr-lab[timm]'") from err
    if not timm.is_model(name):
        raise ValueError(_nearest("timm", name, timm.list_models()))
    more = dict(options or {})
    return cast(
        nn.Module,
        timm.create_model(name, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels, **more),
    )


def from_torch_hub(
    repository: str | None,
    name: str | None,
    *,
    options: Mapping[str, Option] | None = None,
) -> nn.Module:
    """Build a network by a repository's `hubconf.py`; it runs that repository's code.

    Args:
        repository: "owner/name[:tag]" on GitHub, fetched once; or a folder of this machine.
        name: of an entry point there.
        options: its arguments, such as `num_classes` and `pretrained`.

    Raises:
        ValueError: no such repository or entry point, or what it builds is no network.
    """
    if not repository or not name:
        raise ValueError("model=torch_hub needs model.repository=owner/name (or a folder) and model.name=ENTRY_POINT")
    source = "local" if Path(repository).is_dir() else "github"
    try:
        network = torch.hub.load(repository, name, source=source, trust_repo=True, **dict(options or {}))
    except FileNotFoundError as err:
        raise ValueError(f"no {Path(str(err.filename)).name} in {repository}; give owner/name, or a folder") from err
    except RuntimeError as err:
        if "Cannot find callable" not in str(err):
            raise
        raise ValueError(f"{repository} has no entry point {name!r} in its hubconf.py") from err
    if not isinstance(network, nn.Module):
        raise ValueError(f"{name} of {repository} gives a {type(network).__name__}, not a network")
    return network


def expand_declared(backbone: nn.Module, point: str) -> list[str]:
    """Return what `feature_info[-1]`, the last stage, or `feature_info[-4:]`, the last four, stands for.

    Any other point stands for itself.

    Raises:
        ValueError: the network declares no such stage.
    """
    asked = re.fullmatch(r"feature_info\[(-?\d+)(:?)\]", point)
    if asked is None:
        return [point]
    stages = [str(info["module"]) for info in feature_info(backbone)]
    index = int(asked[1])
    if not -len(stages) <= index < len(stages):
        raise ValueError(
            f"{type(backbone).__name__} declares {len(stages)} stages in its feature_info, asked for {point}"
        )
    return stages[index:] if asked[2] else [stages[index]]


def _nearest(library: str, name: str, names: Iterable[str]) -> str:
    near = get_close_matches(name.lower(), list(names), n=5, cutoff=0.0)
    return f"no {library} model named {name!r}; close names: {near}"


def _take_channels(network: nn.Module, in_channels: int) -> None:
    name, stem = next((name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d))
    if stem.in_channels == in_channels:
        return
    fresh = nn.Conv2d(
        in_channels,
        stem.out_channels,
        cast(tuple[int, int], stem.kernel_size),
        cast(tuple[int, int], stem.stride),
        cast(tuple[int, int], stem.padding),
        cast(tuple[int, int], stem.dilation),
        bias=stem.bias is not None,
    )
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, fresh)


def _load_matching(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    own = network.state_dict()
    fitting = {key: value for key, value in weights.items() if key in own and own[key].shape == value.shape}
    network.load_state_dict(fitting, strict=False)
