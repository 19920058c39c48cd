"""A narrow ResNet-18 with FSR, and images of the toy set's kind, as an analysis is given them."""

from functools import partial

import pytest
import torch
from torch import nn

from fsr_lab.analysis.study import Study
from fsr_lab.attack.pgd import PGD
from fsr_lab.core.threat import Threat
from fsr_lab.dataset.toy import Toy
from fsr_lab.defense.fsr import FSR
from fsr_lab.model.defended import attach
from fsr_lab.model.resnet import resnet18

THREAT = Threat(norm="linf", eps=8 / 255)


def network(**options):
    """A network in eval mode whose BatchNorm statistics and masks are no initial ones."""
    torch.manual_seed(1)
    model = attach(resnet18(num_classes=4, width=4), {"layer4": partial(FSR, width=4, **options)}, (3, 32, 32), 4)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_var, 0.2, 0.6)
        nn.init.uniform_(norm.running_mean, -0.2, 0.2)
    return model.eval()


@pytest.fixture
def attack():
    return PGD(threat=THREAT, steps=2, relative_step=0.5, random_start=True)


@pytest.fixture
def study(tmp_path, attack):
    data = Toy(
        name="toy", folder=tmp_path, image_shape=(3, 32, 32), num_classes=4, batch_size=32, eval_batch_size=20,
        val_size=32, augment="none", train_size=96, test_size=50,
        split_seed=0, seed=0, source=None, contrast=0.1, noise=0.1, pattern_seed=0,
    )  # fmt: skip
    data.prepare()
    data.setup()
    return Study(
        model=network(), name="AT+FSR", data=data, threat=THREAT, attacks={"pgd2": attack}, chains={}, samples=30,
        chunk=20, seed=3, device=torch.device("cpu"),
    )  # fmt: skip
