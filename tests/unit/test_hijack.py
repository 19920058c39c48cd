"""Hijack: the adapter's own contribution, exactly where the head is linear on the spatial mean, truly elsewhere."""

import functools
from dataclasses import replace

import pytest
import torch

from fsr_lab.attack.hijack import Hijack
from fsr_lab.attack.pgd import PGD
from fsr_lab.attack.weighted_sum import WeightedSum
from fsr_lab.core.objective import CrossEntropy, OnLogits
from fsr_lab.core.targets import Given, Ranked
from fsr_lab.core.threat import Threat
from fsr_lab.defense.cas import CAS
from fsr_lab.defense.fsr import FSR
from fsr_lab.evaluation.counting import Counted
from fsr_lab.model.defended import attach
from fsr_lab.model.resnet import BasicBlock, ResNet
from fsr_lab.model.vgg import vgg16

PGD5 = PGD(threat=Threat(norm="linf", eps=0.1), steps=5, relative_step=0.25, random_start=False)


@pytest.fixture
def resnet():
    backbone = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=4, in_channels=3, width=4)
    return attach(backbone, {"layer4": FSR}, (3, 8, 8), 4).double().eval()


@pytest.fixture
def images(batch):
    return batch[0].double(), batch[1]


def contribution(model, x, y, target):
    """(W_t - W_y) . GAP((1 - m) R(f-)): METHOD's expression, written out."""
    aux, fsr = model.forward_with_aux(x).aux["layer4"], model.defenses["layer4"]
    added = ((1 - aux["mask"]) * fsr.recalibration(aux["f_minus"])).mean((2, 3))
    weight = model.backbone.fc.weight
    return ((weight[target] - weight[y]) * added).sum(1)


def test_on_a_resnet_it_is_the_adapters_contribution_and_so_is_its_gradient(resnet, images):
    (x, y), hijack = images, Hijack(target=Ranked(rank=1))
    with torch.no_grad():
        prepared = hijack.prepare(resnet, x, y)
        logits = resnet(x).scatter(1, y[:, None], -torch.inf)
    assert torch.equal(prepared["target"], logits.argmax(1))
    image = (x + 0.05 * torch.rand_like(x)).requires_grad_()
    values = hijack(resnet, image, y, prepared), contribution(resnet, image, y, prepared["target"])
    gradients = [torch.autograd.grad(value.sum(), image)[0] for value in values]
    torch.testing.assert_close(*values, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-12)
    assert values[0].abs().min() > 0


def test_pgd_raises_it(resnet, images):
    (x, y), hijack = images, Hijack(target=Ranked(rank=-1))
    target = hijack.prepare(resnet, x, y)["target"]
    x_adv = replace(PGD5, objective=hijack)(resnet, x, y)
    assert (contribution(resnet, x_adv, y, target) > contribution(resnet, x, y, target)).all()


def test_behind_deeper_heads_it_is_the_true_difference():
    model = attach(vgg16(num_classes=4, width=4), {"block4": FSR}, (3, 32, 32), 4).double().eval()
    fsr = model.defenses["block4"]
    with torch.no_grad():
        model.backbone.classifier[0].weight.mul_(100)
        model.backbone.classifier[2].weight.mul_(100)
        model.backbone.classifier[4].weight.mul_(100)
    x, y = torch.rand(4, 3, 32, 32).double(), torch.arange(4)
    hijack = Hijack(target=Given(label=2))
    found = hijack(model, x, y, hijack.prepare(model, x, y))
    deployed = model(x)
    with torch.no_grad():
        fsr.recalibration[-1].weight.zero_()
    off = model(x)  # R = 0 is f~ = f
    likeliest = deployed[2].argsort(descending=True).tolist()
    likeliest.remove(2)
    for row, (label, target) in enumerate([(0, 2), (1, 2), (2, likeliest[0]), (3, 2)]):
        wanted = (deployed[row, target] - deployed[row, label]) - (off[row, target] - off[row, label])
        assert found[row].item() == pytest.approx(wanted.item(), rel=1e-9, abs=1e-15)
    assert found.abs().min() > 0


def test_beside_another_objective_the_deployed_pass_is_made_once(resnet, images):
    x, y = images
    counted = Counted(resnet)
    both = WeightedSum(objectives=[OnLogits(CrossEntropy()), Hijack(target=Ranked(rank=1))], weights=[1, 1])
    replace(PGD5, objective=both)(counted, x, y)
    assert counted.forwards == 8 * (1 + 2 * 5)
    aimed = both.aimed(Given(label=3))
    assert aimed.objectives[1] == Hijack(target=Given(label=3))


def test_it_tells_what_a_network_lacks(resnet, images, linear):
    backbone = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=4, in_channels=3, width=4)
    cas = attach(backbone, {"layer4": functools.partial(CAS)}, (3, 8, 8), 4)
    hijack = Hijack(target=Ranked(rank=1))
    assert hijack.lacks(resnet, images[0]) is None
    for model in (cas, linear):
        assert hijack.lacks(model, images[0]) == "no defence of the network knows the route f"
        with pytest.raises(ValueError, match="knows the route f"):
            replace(PGD5, objective=hijack)(model.double(), *images)
