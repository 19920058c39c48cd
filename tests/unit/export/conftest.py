"""A small trained-looking network with FSR, and a record of it that was counted by hand."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from fsr_lab.core.hashing import state_hash
from fsr_lab.core.provenance import Provenance
from fsr_lab.core.record import EvaluationRecord, Finding
from fsr_lab.core.threat import Threat
from fsr_lab.export.blueprint import Blueprint, Part
from fsr_lab.export.network import Network
from fsr_lab.export.writing import export

BLUEPRINT = Blueprint(
    backbone=Part("fsr_lab.model.tiny_cnn.TinyCNN", {"num_classes": 10, "in_channels": 3, "batch_norm": True}),
    defenses={"block2": Part("fsr_lab.defense.fsr.FSR", {"width": 4, "tau": 0.2})},
    image_shape=(3, 16, 16), num_classes=10, normalize={"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]},
)  # fmt: skip


def shaken(model):
    """Give BatchNorm statistics that are not the initial ones, so that a file without them is noticed."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.rand(module.num_features, generator=generator) - 0.5)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            module.num_batches_tracked.fill_(3)
    return model.eval()


def record(model, *, n=10_000, right=6_000, broken=3_000, findings=()):
    """Return a record of AutoAttack with one member: `right` of n are clean-correct, `broken` of these fall."""
    outcome = np.full((2, n), -1, np.int8)
    outcome[0] = np.arange(n) < right
    outcome[1, :right] = np.arange(right) >= broken
    zeros = np.zeros((2, n), np.float32)
    return EvaluationRecord(
        attacks=("clean", "apgd_ce"), outcome=outcome, margin=zeros, norm=zeros, ids=np.arange(n),
        labels=np.zeros(n, np.int64), forwards=np.zeros(2, np.int64), backwards=np.zeros(2, np.int64),
        threat=Threat(norm="linf", eps="8/255"), precision="float32", chunk=500, settings={}, findings=findings,
        chains={"autoattack": ("apgd_ce",)}, name="small (last)",
        provenance=Provenance(
            command="", revision="", dirty=False, versions={}, host={}, seed=0,
            hashes={"weights": state_hash(model.state_dict())},
        ),
    )  # fmt: skip


@pytest.fixture(scope="session")
def network():
    torch.manual_seed(0)
    return Network(
        name="small", model=shaken(BLUEPRINT.build()), blueprint=BLUEPRINT, threat=Threat(norm="linf", eps="8/255"),
        dataset="cifar10", label='AT+FSR """', architecture="tiny_cnn", licence="MIT",
        recipe={"strategy": "AT(steps=10)"}, data={"augmentation": "pad_crop_flip"}, provenance={"revision": "abc"},
        paper=dict.fromkeys(("title", "authors", "link", "venue"), ""),
    )  # fmt: skip


@pytest.fixture
def evaluated(network):
    """Return the network with its record, in which one check failed."""
    finding = Finding("noise", "fail", 0.5, "half of the predictions change from call to call")
    return replace(network, records=(record(network.model, findings=(finding,)),))


@pytest.fixture(scope="session")
def images():
    return torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="session")
def exported(network, tmp_path_factory):
    """Return the function that exports the network in a format, once for all tests: none may change what it gives."""
    made = {}

    def once(format):
        if format not in made:
            made[format] = export(network, format, tmp_path_factory.mktemp("exports") / format)
        return made[format]

    return once


@pytest.fixture
def written(network, tmp_path):
    """Return the function that exports the network anew, for a test to damage."""
    return partial(_write, network, tmp_path)


def _write(network, folder, format):
    return export(network, format, folder / format)
