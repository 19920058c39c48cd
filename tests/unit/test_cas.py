"""CAS: whose row of the probe scales the channels, and what its loss and its crafting objective are worth."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from fsr_lab.attack.on_aux import OnAux
from fsr_lab.attack.pgd import PGD
from fsr_lab.core.objective import CrossEntropy, JointWithAux, KLFromClean
from fsr_lab.core.route import Route
from fsr_lab.core.threat import Threat
from fsr_lab.core.types import FeatureShape, Forward
from fsr_lab.defense.cas import CAS
from fsr_lab.defense.fsr import FSR
from fsr_lab.evaluation.counting import Counted
from fsr_lab.model.defended import attach
from fsr_lab.model.tiny_cnn import TinyCNN
from fsr_lab.strategy.base import aimed_at

SHAPE = FeatureShape(2, 1, 2)
WEIGHT = [[2.0, -1.0], [0.5, 3.0], [-4.0, 1.0]]
BIAS = [0.0, 1.0, -1.0]


@pytest.fixture
def cas():
    """A probe of known weights."""
    defense = CAS(SHAPE, 3)
    with torch.no_grad():
        defense.probe.weight.copy_(torch.tensor(WEIGHT))
        defense.probe.bias.copy_(torch.tensor(BIAS))
    return defense


@pytest.fixture
def features():
    """Two samples, two channels, two pixels: spatial means (2, 1) and (0, 2)."""
    return torch.tensor([[[[1.0, 3.0]], [[2.0, 0.0]]], [[[0.0, 0.0]], [[1.0, 3.0]]]])


LOGITS = [[3.0, 5.0, -8.0], [-2.0, 7.0, 1.0]]
"""W g + b by hand; the probe predicts class 1 twice."""


def test_the_probes_logits_are_those_of_the_spatial_means(cas, features):
    aux = cas(features, torch.tensor([0, 2])).aux
    assert list(aux) == ["p_probe"]
    assert aux["p_probe"].tolist() == LOGITS


@pytest.mark.parametrize(
    ("training", "labels", "rows"),
    [
        (True, [0, 2], [0, 2]),
        (True, None, [1, 1]),
        (False, [0, 2], [1, 1]),
        (False, None, [1, 1]),
    ],
)
@pytest.mark.parametrize("want_aux", [True, False])
def test_the_mask_is_the_row_of_the_true_class_in_training_and_of_the_predicted_one_otherwise(
    training, labels, rows, want_aux, cas, features
):
    targets = None if labels is None else torch.tensor(labels)
    found = cas.train(training)(features, targets, want_aux=want_aux).features
    for index, row in enumerate(rows):
        for channel in range(2):
            wanted = [value * WEIGHT[row][channel] for value in features[index, channel, 0].tolist()]
            assert found[index, channel, 0].tolist() == wanted


def test_without_a_tape_a_network_in_training_follows_its_own_predictions(batch):
    x, y = batch
    model = attach(TinyCNN(num_classes=4), {"block2": CAS}, (3, 8, 8), 4).train()
    predicted = model.forward_with_aux(x).aux["block2"]["p_probe"].argmax(1)
    assert not torch.equal(predicted, y)
    assert torch.equal(model(x), model.forward_with_aux(x, predicted).logits)
    assert not torch.equal(model(x), model.forward_with_aux(x, y).logits)


def test_the_probe_does_not_run_where_neither_mask_nor_loss_needs_it(cas, features):
    runs = []
    cas.probe.register_forward_hook(lambda *_: runs.append(1))
    cas.train()(features, torch.tensor([0, 2]), want_aux=False)
    assert runs == []
    cas.eval()(features, want_aux=False)
    assert len(runs) == 1


def gradients(value, *tensors):
    """Return the gradients of the sum of a value, None where it does not depend on a tensor."""
    return torch.autograd.grad(value.sum(), tensors, allow_unused=True, retain_graph=True)


def test_the_mask_trains_its_row_and_nothing_flows_through_its_choice(cas, features):
    x = features.requires_grad_()
    out = cas.train()(x, torch.tensor([0, 2]))
    weight, bias, inputs = gradients(out.features, cas.probe.weight, cas.probe.bias, x)
    assert bias is None
    assert weight.tolist() == [[4.0, 2.0], [0.0, 0.0], [0.0, 4.0]]  # sums over space: of samples 0, none, 1
    assert inputs[:, :, 0, 0].tolist() == [WEIGHT[0], WEIGHT[2]]
    out = cas.eval()(x)
    weight, bias, inputs = gradients(out.features, cas.probe.weight, cas.probe.bias, x)
    assert bias is None
    assert inputs[:, :, 0, 0].tolist() == [WEIGHT[1], WEIGHT[1]]
    assert all(value.any() for value in gradients(out.aux["p_probe"], cas.probe.weight, cas.probe.bias, x))


def criterion(adv, clean, y):
    terms = {"ce": nn.functional.cross_entropy(adv, y)}
    return terms if clean is None else terms | {"kl": 6 * (adv - clean).square().mean()}


def test_the_loss_is_the_strategys_own_on_the_probe_times_beta(cas, features):
    cas.beta = 0.5
    y = torch.tensor([0, 2])
    adv = Forward(torch.randn(2, 3), {"layer4.0": cas(features, y).aux})
    clean = Forward(torch.randn(2, 3), {"layer4.0": cas(2 * features, y).aux})
    found = cas.auxiliary_loss(adv, y, "layer4.0", clean=None, criterion=criterion)
    # -log softmax of the true class, by hand
    ce = sum(
        math.log(sum(math.exp(z) for z in row)) - row[label] for row, label in zip(LOGITS, y.tolist(), strict=True)
    )
    assert {name: value.item() for name, value in found.items()} == {"ce": pytest.approx(0.5 * ce / 2)}
    found = cas.auxiliary_loss(adv, y, "layer4.0", clean=clean, criterion=criterion)
    # the clean means are twice as large, and so are W g: the logits differ by W g
    products = [z - b for row in LOGITS for z, b in zip(row, BIAS, strict=True)]
    assert list(found) == ["ce", "kl"]
    assert found["kl"].item() == pytest.approx(0.5 * 6 * sum(p * p for p in products) / 6)


def cross_entropy(logits, label):
    return math.log(sum(math.exp(z) for z in logits)) - logits[label]


def test_crafting_raises_the_joint_loss_by_hand():
    """CE(z, y) + 2 * (CE(c1, y) + CE(c2, y)) / 2 at two sites, every factor worked out with Python's own floats."""
    model = attach(TinyCNN(num_classes=4, width=3), {"block1": CAS, "block2": CAS}, (3, 8, 8), 4).eval()
    x, y = torch.rand(5, 3, 8, 8), torch.tensor([0, 3, 1, 2, 2])
    found = JointWithAux(CrossEntropy())(model, x, y, {})
    backbone, one, two = model.backbone, *(tap.defense.probe for tap in model.taps.values())
    plain = TinyCNN(num_classes=4, width=3)
    plain.load_state_dict(backbone.state_dict())
    for index in range(5):
        f = plain.block1(x[[index]])
        c1 = (one.weight @ f.sum((0, 2, 3)) / 16 + one.bias).tolist()
        f = plain.block2(f * one.weight[c1.index(max(c1))].reshape(1, -1, 1, 1))
        c2 = (two.weight @ f.sum((0, 2, 3)) / 4 + two.bias).tolist()
        f = f * two.weight[c2.index(max(c2))].reshape(1, -1, 1, 1)
        z = plain.fc(f.mean((2, 3)))[0].tolist()
        label = y[index].item()
        wanted = cross_entropy(z, label) + 2 * (cross_entropy(c1, label) + cross_entropy(c2, label)) / 2
        assert found[index].item() == pytest.approx(wanted, rel=1e-5)


def test_crafting_with_kl_compares_the_probes_with_those_of_the_clean_images(cas, features):
    y = torch.tensor([0, 2])
    adv, clean = cas.eval()(features).aux, cas(0.5 * features).aux
    found = cas.attack_terms(adv, y, clean, KLFromClean())
    for index, row in enumerate(LOGITS):
        # half the mean: half of W g, the whole of b
        p = torch.tensor([(z + b) / 2 for z, b in zip(row, BIAS, strict=True)], dtype=torch.float64).softmax(0)
        q = torch.tensor(row, dtype=torch.float64).softmax(0)
        assert found[index].item() == pytest.approx(2 * (p * (p / q).log()).sum().item(), rel=1e-5)


def test_training_crafts_on_the_joint_loss():
    pgd = PGD(threat=Threat(norm="linf", eps=8 / 255), steps=1, relative_step=1.0, random_start=False)
    defended = {name: attach(TinyCNN(num_classes=4), {"block2": name}, (3, 8, 8), 4) for name in (CAS, FSR)}
    assert aimed_at(pgd, defended[CAS]).objective == JointWithAux(CrossEntropy())
    assert aimed_at(pgd, defended[FSR]) is pgd
    chosen = replace(pgd, objective=OnAux(key="p_probe", loss=CrossEntropy()))
    assert aimed_at(chosen, defended[CAS]) is chosen


def test_an_evaluation_attacks_the_joint_loss_and_counts_its_passes(batch):
    x, y = batch
    model = attach(TinyCNN(num_classes=4), {"block1": CAS, "block2": CAS}, (3, 8, 8), 4).eval()
    pgd = PGD(threat=Threat(norm="linf", eps=0.1), steps=3, relative_step=0.5, random_start=False)
    joint = replace(pgd, objective=JointWithAux(CrossEntropy()))
    counted = Counted(model)
    found = joint(counted, x, y)
    assert (counted.forwards, counted.backwards) == (3 * 8, 3 * 8)
    assert torch.equal(found, joint(model, x, y))
    assert not torch.equal(found, pgd(model, x, y))
    raised = [JointWithAux(CrossEntropy())(model, images, y, {}).mean() for images in (pgd(model, x, y), found)]
    assert raised[1] > raised[0]


def test_beside_another_defence_each_keeps_its_own_mean(batch):
    x, y = batch
    model = attach(TinyCNN(num_classes=4), {"block1": CAS, "block2": FSR, "avgpool:in": CAS}, (3, 8, 8), 4).train()
    adv = model.forward_with_aux(x, y)
    found = model.auxiliary_losses(adv, y, criterion=criterion)
    assert list(found) == ["block1/ce", "block2/sep", "block2/rec", "avgpool:in/ce"]
    for point in ("block1", "avgpool:in"):
        wanted = nn.functional.cross_entropy(adv.aux[point]["p_probe"], y)  # beta of 2, over two sites
        torch.testing.assert_close(found[f"{point}/ce"], wanted)


@pytest.mark.parametrize("beta", [-1.0, float("nan")])
def test_a_beta_below_zero_is_refused(beta):
    with pytest.raises(ValueError, match=f"expected beta of at least 0, got {beta}") as caught:
        CAS(SHAPE, 3, beta=beta)
    assert "\n" not in str(caught.value)


def test_another_number_of_channels_is_refused(cas):
    with pytest.raises(ValueError, match="expected features of 2 channels, got 3"):
        cas(torch.randn(2, 3, 4, 4))


def probabilities(tau):
    """Return softmax(c / tau) of both samples, by Python's own floats."""
    rows = [[math.exp((z - max(logits)) / tau) for z in logits] for logits in LOGITS]
    return [[value / sum(row) for value in row] for row in rows]


def mean_rows(tau):
    """Return sum_k softmax(c / tau)_k W_k of both samples."""
    return [[sum(p * row[channel] for p, row in zip(each, WEIGHT, strict=True)) for channel in range(2)]
            for each in probabilities(tau)]  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("tau", [0.1, 1.0, 4.0, 1e6])
def test_a_routes_tau_takes_the_mean_of_the_rows(tau, training, cas, features):
    found = cas.train(training)(features, route=Route(tau=tau)).features
    mask = torch.tensor(mean_rows(tau))
    torch.testing.assert_close(found, features * mask[:, :, None, None])
    if tau == 0.1:
        torch.testing.assert_close(found, cas(features).features)
    if tau == 1e6:
        torch.testing.assert_close(mask, torch.tensor(WEIGHT).mean(0).expand(2, 2), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("want_aux", [True, False])
@pytest.mark.parametrize(("route", "mask"), [
    (Route(backward_tau=4.0), [WEIGHT[1], WEIGHT[1]]),
    (Route(tau=2.0, backward_tau=4.0), mean_rows(2.0)),
])  # fmt: skip
def test_a_routes_backward_tau_is_the_derivative_of_the_soft_choice_alone(route, mask, want_aux, cas, features):
    """With c = W g + b: d m_i / d g_j = sum_k p_k (W_ki - mean_i) W_kj / tau, and g_j is the mean of two pixels."""
    cas.eval()
    x, weigh = features.requires_grad_(), torch.randn(2, 2, 1, 2)
    found = cas(x, route=route, want_aux=want_aux).features
    if route.tau is None:
        assert torch.equal(found, cas(x).features)
    (gradient,) = torch.autograd.grad((found * weigh).sum(), x)
    probs, means = probabilities(4.0), mean_rows(4.0)
    for n in range(2):
        slope = [[sum(probs[n][k] * (WEIGHT[k][i] - means[n][i]) * WEIGHT[k][j] for k in range(3)) / 4 / 2
                  for j in range(2)] for i in range(2)]  # fmt: skip
        for j in range(2):
            by_mask = sum(weigh[n, i, 0, q].item() * x[n, i, 0, q].item() * slope[i][j]
                          for i in range(2) for q in range(2))  # fmt: skip
            for pixel in range(2):
                wanted = weigh[n, j, 0, pixel].item() * mask[n][j] + by_mask
                assert gradient[n, j, 0, pixel].item() == pytest.approx(wanted, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("route", [Route(tau=4.0), Route(backward_tau=4.0)])
def test_where_labels_choose_a_route_changes_nothing(route, cas, features):
    y, x = torch.tensor([0, 2]), features.requires_grad_()
    routed, plain = (cas.train()(x, y, route=way).features for way in (route, None))
    assert torch.equal(routed, plain)
    assert torch.equal(*(torch.autograd.grad(each.square().sum(), x)[0] for each in (routed, plain)))


def test_a_routed_view_still_tells_what_crafting_must_raise(batch):
    x, y = batch
    model = attach(TinyCNN(num_classes=4), {"block1": CAS, "block2": CAS}, (3, 8, 8), 4).eval()
    view = model.routed({"block1": Route(tau=1.0)})
    for network in (view, Counted(view)):
        out = view.forward_with_aux(x)
        wanted = CrossEntropy()(out.logits, y) + model.attack_terms(out, y, clean=None, loss=CrossEntropy())
        assert torch.equal(JointWithAux(CrossEntropy())(network, x, y, {}), wanted)
    both = view.routed({"block2": Route(tau=2.0)})
    assert both.route == {"block1": Route(tau=1.0), "block2": Route(tau=2.0)}
    assert view.route == {"block1": Route(tau=1.0)}
