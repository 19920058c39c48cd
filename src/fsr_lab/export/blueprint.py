"""What a network is made of, as plain data: enough to build it again without its config, Hydra or Lightning."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple, Self

import torch
from torch import nn

from fsr_lab.core.defense import FeatureDefense
from fsr_lab.model.defended import DefendedModel, DefenseBuilder, attach
from fsr_lab.model.normalize import Normalize

BACKBONES, DEFENSES = "fsr_lab.model", "fsr_lab.defense"
"""The packages whose constructors a blueprint may name; what else it names, whoever loads it must trust."""

FETCHING = ("pretrained", "checkpoint_path", "cache_dir", "pretrained_cfg", "pretrained_cfg_overlay")
"""Arguments by which a constructor reads files of its own choice: a blueprint's network gets its weights from us."""

HUB = "fsr_lab.model.library_model.from_torch_hub"
"""The one constructor of ours that runs other people's code."""


class Part(NamedTuple):
    """A constructor by its dotted name, and its arguments."""

    target: str
    arguments: Mapping[str, Any]

    def located(self, home: str, trusted: Sequence[str]) -> Any:
        """Return the constructor, which must be a public one that a module of `home`, or of a trusted package, defines.

        Raises:
            ValueError: it is another one, or not there.
            ImportError: a package that it needs is not installed.
        """
        module, _, name = self.target.rpartition(".")
        if not any(module == package or module.startswith(f"{package}.") for package in (home, *trusted)):
            raise ValueError(
                f"refused to call {self.target}, which is not of {home} and may be any code; if you know its author, "
                f"give trust=[{self.target.partition('.')[0]!r}]"
            )
        if self.target == HUB:
            raise ValueError("refused to build a network by a torch.hub repository's code; export it as onnx instead")
        try:
            found = getattr(import_module(module), name, None)
        except ModuleNotFoundError as err:
            raise ImportError(f"{self.target} is not installed here ({err}); install its package") from err
        if name.startswith("_") or not callable(found) or getattr(found, "__module__", "") != module:
            raise ValueError(f"there is no constructor {self.target} in this version of its package; upgrade it")
        return found


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """A defended network without its weights.

    Attributes:
        backbone: maps images to logits.
        defenses: {point: a feature defence}.
        image_shape: (C, H, W).
        num_classes: K.
        layout: of the activations at the points.
        normalize: {"mean": ..., "std": ...} of the backbone's first layer; None has no such layer.
    """

    backbone: Part
    defenses: Mapping[str, Part]
    image_shape: tuple[int, int, int]
    num_classes: int
    layout: str = "nchw"
    normalize: Mapping[str, Sequence[float]] | None = None

    def build(self, trust: Sequence[str] = ()) -> DefendedModel:
        """Build the network in eval mode, on the CPU, with fresh weights; the caller's random state is left alone.

        Args:
            trust: packages beside fsr-lab whose constructors may be called.

        Raises:
            TypeError: `trust` is one name, not a list of them.
            ValueError: it names what is not to be called, or what does not fit together.
            ImportError: a library that it needs is not installed.
        """
        if isinstance(trust, str):
            raise TypeError(f"expected a list of packages to trust, got {trust!r}; give [{trust!r}]")
        with torch.random.fork_rng(devices=()):
            backbone = self._built(self.backbone, BACKBONES, trust)()
            if not isinstance(backbone, nn.Module):
                raise ValueError(f"{self.backbone.target} gives a {type(backbone).__name__}, not a network")
            if self.normalize:
                Normalize(**self.normalize).put_on(backbone)
            defenses: dict[str, DefenseBuilder] = {
                point: self._built(part, DEFENSES, trust) for point, part in self.defenses.items()
            }
            return attach(backbone, defenses, self.image_shape, self.num_classes, self.layout).eval()

    def as_dict(self) -> dict[str, Any]:
        """Return plain containers, ready for JSON."""
        return {
            "backbone": self.backbone._asdict(),
            "defenses": {point: part._asdict() for point, part in self.defenses.items()},
            "image_shape": list(self.image_shape), "layout": self.layout, "normalize": self.normalize,
            "num_classes": self.num_classes,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """Read what `as_dict` gave.

        Raises:
            ValueError: it is something else.
        """
        try:
            channels, height, width = (int(size) for size in plain["image_shape"])
            return cls(
                backbone=_part(plain["backbone"]),
                defenses={str(point): _part(part) for point, part in plain["defenses"].items()},
                image_shape=(channels, height, width), num_classes=int(plain["num_classes"]),
                layout=str(plain["layout"]), normalize=plain["normalize"],
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError) as err:
            raise ValueError(f"this is no description of a network ({err!r}); export it again") from err

    def _built(self, part: Part, home: str, trust: Sequence[str]) -> Any:
        options = part.arguments.get("options") or {}
        for name in FETCHING:
            if part.arguments.get(name) or (isinstance(options, Mapping) and options.get(name)):
                raise ValueError(f"refused to build {part.target} with {name}, which reads weights from elsewhere")
        found = part.located(home, trust)
        if home == DEFENSES and not (inspect.isclass(found) and issubclass(found, FeatureDefense)):
            raise ValueError(f"{part.target} is no feature defence; this file was not made by fsr export")
        return partial(found, **part.arguments)


def _part(plain: Mapping[str, Any]) -> Part:
    return Part(str(plain["target"]), dict(plain["arguments"]))
