"""Entry points for torch.hub: the paper's backbones, bare or with FSR at its place, and exported networks.

torch.hub.load("OWNER/fsr-lab", "resnet18", fsr=True)
"""

import importlib.util as _util
import sys as _sys
from pathlib import Path as _Path

dependencies = ["torch", "numpy"]

_HERE = _Path(__file__).parent
if _util.find_spec("fsr_lab") is None:  # a clone of torch.hub's is not installed
    _sys.path.append(str(_HERE / "src"))


def resnet18(fsr=False, num_classes=10, image_shape=(3, 32, 32), width=64):
    """ResNet-18 for CIFAR's images.

    Args:
        fsr: whether FSR sits after its last group.
        num_classes: K.
        image_shape: (C, H, W) of images in [0, 1].
        width: channels of the first group; the paper's network has 64.
    """
    from fsr_lab.model.resnet import resnet18 as build

    return _defended("resnet18", build, fsr, num_classes, image_shape, width=width)


def resnet50(fsr=False, num_classes=10, image_shape=(3, 32, 32), width=64):
    """ResNet-50 for CIFAR's images; see `resnet18`."""
    from fsr_lab.model.resnet import resnet50 as build

    return _defended("resnet50", build, fsr, num_classes, image_shape, width=width)


def vgg16(fsr=False, num_classes=10, image_shape=(3, 32, 32), width=64):
    """VGG16 with BatchNorm; see `resnet18`."""
    from fsr_lab.model.vgg import vgg16 as build

    return _defended("vgg16", build, fsr, num_classes, image_shape, width=width)


def preact_resnet18(fsr=False, num_classes=10, image_shape=(3, 32, 32), width=64):
    """Pre-activation ResNet-18; see `resnet18`."""
    from fsr_lab.model.preact_resnet import preact_resnet18 as build

    return _defended("preact_resnet18", build, fsr, num_classes, image_shape, width=width)


def wrn34_10(fsr=False, num_classes=10, image_shape=(3, 32, 32), widen_factor=10):
    """WideResNet-34; see `resnet18`. The paper's widen_factor is 10."""
    from fsr_lab.model.wide_resnet import WideResNet

    return _defended("wrn34_10", WideResNet, fsr, num_classes, image_shape, depth=34, widen_factor=widen_factor)


def load(place, sha256=None):
    """Load a network that `fsr export` wrote, from its folder or the Hugging Face hub; see `fsr_lab.load`."""
    from fsr_lab.export.loading import load as read

    return read(place, sha256=sha256)


def _defended(name, build, fsr, num_classes, image_shape, **size):
    from fsr_lab.defense.fsr import FSR
    from fsr_lab.model.defended import attach

    backbone = build(num_classes=num_classes, in_channels=image_shape[0], **size)
    return attach(backbone, {_tap(name): FSR} if fsr else {}, tuple(image_shape), num_classes)


def _tap(name):
    """Return where FSR sits, as the network's config says."""
    lines = (_HERE / "conf" / "model" / f"{name}.yaml").read_text().splitlines()
    (found,) = (line for line in lines if line.startswith("tap:"))
    return found.removeprefix("tap:").partition("#")[0].strip()
