"""CIFS in closed form against its definition, which differentiates a probe inside the forward pass."""

import pytest
import torch
from torch import nn

from fsr_lab.core.objective import CrossEntropy, JointWithAux
from fsr_lab.core.route import Route
from fsr_lab.core.types import FeatureShape, Forward
from fsr_lab.defense.cifs import CIFS
from fsr_lab.model.defended import attach
from fsr_lab.model.tiny_cnn import TinyCNN

SHAPE = FeatureShape(6, 3, 4)


class Reference(nn.Module):
    """The definition: the mask is the softmax of d (c_k1 + c_k2) / d feature, at a detached copy, summed over space."""

    def __init__(self, shape, num_classes, hidden):
        super().__init__()
        self.probe = nn.Sequential(nn.Linear(shape.channels, num_classes))
        if hidden is not None:
            layers = nn.Linear(shape.channels, hidden), nn.Softplus(beta=5), nn.Linear(hidden, num_classes)
            self.probe = nn.Sequential(*layers)

    def forward(self, features, targets=None):
        with torch.enable_grad():
            copy = features.detach().clone().requires_grad_()
            logits = self.probe(copy.mean((2, 3)))
            order = logits.argsort(dim=1, descending=True)
            first = targets if self.training and targets is not None else order[:, 0]
            chosen = sum(logits[i, first[i]] + logits[i, order[i, 1]] for i in range(len(features)))
            (gradient,) = torch.autograd.grad(chosen, copy, create_graph=True)
        mask = gradient.sum((2, 3)).softmax(1)
        return features * mask[:, :, None, None], self.probe(features.mean((2, 3))), mask


def pair(hidden, dtype=torch.float32):
    """Return the module and its reference, of one set of weights; probes so steep that masks are far from uniform."""
    defense, reference = CIFS(SHAPE, 5, hidden=hidden).to(dtype), Reference(SHAPE, 5, hidden).to(dtype)
    for parameter in defense.parameters():
        nn.init.normal_(parameter)
    for own, other in zip(defense.parameters(), reference.parameters(), strict=True):
        other.data.copy_(own.data)
    return defense, reference


def gradients(value, *tensors):
    """Return a scalar's gradients, zeros where it does not depend on a tensor."""
    found = torch.autograd.grad(value, tensors, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, found, strict=True)]


@pytest.mark.parametrize("hidden", [None, 7])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("labelled", [True, False])
def test_masks_logits_and_gradients_are_the_definitions(hidden, training, labelled):
    defense, reference = pair(hidden, torch.float64)
    defense.train(training)
    reference.train(training)
    y = torch.arange(8) % 5 if labelled else None
    own, other = (torch.randn(8, 6, 3, 4, dtype=torch.float64) for _ in range(2))
    other.copy_(own)
    own.requires_grad_()
    other.requires_grad_()
    found = defense(own, y)
    features, logits, mask = reference(other, y)
    assert mask.max() > 0.5
    torch.testing.assert_close(found.features, features, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.features / own, mask[:, :, None, None].expand_as(own), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.aux["p_probe"], logits, atol=1e-6, rtol=0)
    weigh, weigh_logits = torch.randn_like(features), torch.randn_like(logits)
    for one, two in (((found.features * weigh).sum(), (features * weigh).sum()),
                     ((found.aux["p_probe"] * weigh_logits).sum(), (logits * weigh_logits).sum())):  # fmt: skip
        ours, theirs = gradients(one, own, *defense.parameters()), gradients(two, other, *reference.parameters())
        assert any(value.any() for value in ours[1:])
        for mine, wanted in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("hidden", [None, 7])
def test_in_float32_too(hidden):
    defense, reference = pair(hidden)
    features = torch.randn(8, 6, 3, 4)
    masked, logits, _ = reference.eval()(features)
    found = defense.eval()(features)
    torch.testing.assert_close(found.aux["p_probe"], logits, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.features, masked, atol=1e-6, rtol=0)
    with torch.no_grad():  # where the definition must switch autograd on, and this does not
        assert torch.equal(defense(features).features, found.features)


def fixed():
    """A linear probe on two channels whose logits are 10 g1, 10 g2 and minus three."""
    defense = CIFS(FeatureShape(2, 1, 1), 3)
    with torch.no_grad():
        defense.outer.weight.copy_(torch.tensor([[10.0, 0.0], [0.0, 10.0], [0.5, -0.5]]))
        defense.outer.bias.copy_(torch.tensor([0.0, 0.0, -3.0]))
    return defense


E = 2.718281828459045


@pytest.mark.parametrize(
    ("training", "label", "importance"),
    [
        (False, 2, (10, 10)),  # the two most likely classes, 0 and 1
        (True, None, (10, 10)),
        (True, 2, (0.5, 9.5)),  # the true class and the second-ranked prediction
        (True, 0, (10, 10)),
        (True, 1, (0, 20)),  # the second-ranked prediction is the true class: counted twice
    ],
)
def test_the_classes_are_the_true_one_in_training_and_the_predictions_otherwise(training, label, importance):
    features = torch.tensor([2.0, 1.0]).reshape(1, 2, 1, 1)  # logits 20, 10, -2.5
    targets = None if label is None else torch.tensor([label])
    found = fixed().train(training)(features, targets).features.flatten().tolist()
    first = 1 / (1 + E ** (importance[1] - importance[0]))
    assert found == pytest.approx([2 * first, 1 - first], rel=1e-5)


def test_the_importance_of_a_hidden_probe_by_hand():
    defense = CIFS(FeatureShape(2, 1, 1), 2, hidden=1)
    with torch.no_grad():
        defense.inner.weight.copy_(torch.tensor([[3.0, -1.0]]))
        defense.inner.bias.fill_(0.25)
        defense.outer.weight.copy_(torch.tensor([[2.0], [-1.5]]))
        defense.outer.bias.zero_()
    # hidden unit 3 * 0.05 - 0.2 + 0.25 = 0.2; (2 - 1.5) * sigmoid(5 * 0.2) = 0.5 / (1 + 1 / e) = 0.365529
    classes = torch.tensor([0]), torch.tensor([1])
    found = defense.importance(torch.tensor([[0.05, 0.2]]), *classes).flatten().tolist()
    assert found == pytest.approx([3 * 0.3655293, -0.3655293], abs=1e-6)
    softplus = 0.2626523  # log(1 + e) / 5
    logits = defense(torch.tensor([0.05, 0.2]).reshape(1, 2, 1, 1)).aux["p_probe"].flatten().tolist()
    assert logits == pytest.approx([2 * softplus, -1.5 * softplus], abs=1e-6)


@pytest.mark.parametrize("hidden", [None, 7])
def test_masks_pass_no_gradient_to_the_features_and_the_probe_does(hidden):
    defense, _ = pair(hidden)
    x = torch.randn(4, 6, 3, 4, requires_grad=True)
    out = defense(x, torch.arange(4))
    mask = (out.features / x).detach()
    (gradient,) = torch.autograd.grad(out.features.sum(), x, retain_graph=True)
    torch.testing.assert_close(gradient, mask, atol=1e-5, rtol=1e-4)
    assert torch.autograd.grad(out.aux["p_probe"].square().sum(), x)[0].any()


@pytest.mark.parametrize("hidden", [None, 7])
def test_a_mask_sums_to_one(hidden):
    defense, _ = pair(hidden)
    ones = torch.ones(4, 6, 3, 4)
    torch.testing.assert_close(defense(ones).features.sum(1), torch.ones(4, 3, 4))


def test_the_probe_runs_once_where_nobody_reads_its_logits():
    defense, _ = pair(7)
    x = torch.randn(4, 6, 3, 4, requires_grad=True)
    logits = []
    defense.outer.register_forward_hook(lambda module, inputs, output: logits.append(inputs[0].requires_grad))
    for parameter in defense.parameters():
        parameter.requires_grad_(False)  # as while crafting
    defense.eval()(x, want_aux=False)
    defense(x)
    assert logits == [False, True]


def test_the_loss_and_the_crafting_objective_are_those_of_the_probe_times_beta():
    defense = CIFS(SHAPE, 5, beta=0.5)
    features, y = torch.randn(4, 6, 3, 4), torch.tensor([0, 1, 4, 2])
    aux = defense(features, y).aux
    probs = (features.sum((2, 3)) / 12 @ defense.outer.weight.T + defense.outer.bias).softmax(1)
    each = torch.stack([-probs[i, y[i]].log() for i in range(4)])
    torch.testing.assert_close(defense.attack_terms(aux, y, None, CrossEntropy()), 0.5 * each)

    def criterion(adv, clean, y):
        return {"ce": nn.functional.cross_entropy(adv, y)}

    forward = Forward(torch.randn(4, 5), {"layer4.0": aux})
    found = defense.auxiliary_loss(forward, y, "layer4.0", clean=None, criterion=criterion)
    assert list(found) == ["ce"]
    torch.testing.assert_close(found["ce"], 0.5 * each.mean())


def test_the_joint_objective_of_two_sites_adds_their_mean(batch):
    x, y = batch
    model = attach(TinyCNN(num_classes=4), {"block1": CIFS, "block2": CIFS}, (3, 8, 8), 4).eval()
    out = model.forward_with_aux(x)
    one, two, final = (
        nn.functional.cross_entropy(logits, y, reduction="none")
        for logits in (out.aux["block1"]["p_probe"], out.aux["block2"]["p_probe"], out.logits)
    )
    torch.testing.assert_close(JointWithAux(CrossEntropy())(model, x, y, {}), final + 2 * (one + two) / 2)


@pytest.mark.parametrize(
    ("classes", "options", "message"),
    [
        (1, {}, "expected at least 2 classes for CIFS, whose masks follow two, got 1"),
        (5, {"beta": -0.1}, "expected beta of at least 0, got -0.1"),
        (5, {"hidden": 0}, "expected hidden of at least 1, or null for a linear probe, got 0"),
    ],
)
def test_options_that_cannot_work_are_refused(classes, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        CIFS(SHAPE, classes, **options)
    assert "\n" not in str(caught.value)


def test_another_number_of_channels_is_refused():
    with pytest.raises(ValueError, match="expected features of 6 channels, got 5"):
        CIFS(SHAPE, 5)(torch.randn(2, 5, 4, 4))


def softened(reference, features, tau):
    """Return the definition's mask with 2 sum_k softmax(c / tau)_k c_k in c_k1 + c_k2's place, nowhere detached."""
    logits = reference.probe(features.mean((2, 3)))
    by_class = [
        torch.autograd.grad(logits[:, k].sum(), features, create_graph=True)[0].sum((2, 3))
        for k in range(logits.shape[1])
    ]
    shares = (logits / tau).softmax(1)
    return (2 * torch.stack(by_class, dim=1) * shares[:, :, None]).sum(1).softmax(1)


def test_through_the_mask_flows_what_the_definition_detaches():
    defense, reference = pair(7, torch.float64)
    x = torch.randn(8, 6, 3, 4, dtype=torch.float64).requires_grad_()
    weigh = torch.randn_like(x)
    found = defense.eval()(x, route=Route(mask_gradient="through")).features
    assert torch.equal(found, defense(x).features)
    (gradient,) = torch.autograd.grad((found * weigh).sum(), x)
    logits = reference.probe(x.mean((2, 3)))
    top = logits.topk(2, dim=1).values.sum()
    (slope,) = torch.autograd.grad(top, x, create_graph=True)
    mask = slope.sum((2, 3)).softmax(1)
    (wanted,) = torch.autograd.grad((x * mask[:, :, None, None] * weigh).sum(), x)
    torch.testing.assert_close(gradient, wanted, atol=1e-9, rtol=1e-6)
    (stopped,) = torch.autograd.grad((defense(x).features * weigh).sum(), x)
    assert (gradient - stopped).abs().max() > 0.01


def test_a_linear_probe_does_not_know_the_route_that_would_change_nothing():
    assert CIFS.routes == CIFS(SHAPE, 5, hidden=7).routes == {"f_tilde", "through", "backward_tau"}
    model = attach(TinyCNN(num_classes=4), {"block2": CIFS}, (3, 8, 8), 4)
    with pytest.raises(ValueError, match=r"CIFS at 'block2' has no route \['through'\]; it knows \['back"):
        model.routed({"block2": Route(mask_gradient="through")})


@pytest.mark.parametrize("hidden", [None, 7])
@pytest.mark.parametrize("want_aux", [True, False])
def test_a_routes_backward_tau_softens_the_choice_of_the_two_classes(hidden, want_aux):
    defense, reference = pair(hidden, torch.float64)
    x = torch.randn(8, 6, 3, 4, dtype=torch.float64).requires_grad_()
    weigh = torch.randn_like(x)
    found = defense.eval()(x, route=Route(backward_tau=2.0), want_aux=want_aux).features
    assert torch.equal(found, defense(x).features)
    (gradient,) = torch.autograd.grad((found * weigh).sum(), x)
    deployed = (defense(x).features / x).detach()
    soft = softened(reference, x, 2.0)
    (by_mask,) = torch.autograd.grad((x.detach() * soft[:, :, None, None] * weigh).sum(), x)
    assert by_mask.abs().max() > 0.01
    torch.testing.assert_close(gradient, deployed * weigh + by_mask, atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("hidden", [None, 7])
def test_where_labels_choose_a_backward_tau_changes_nothing(hidden):
    defense, _ = pair(hidden)
    x, y = torch.randn(4, 6, 3, 4, requires_grad=True), torch.tensor([0, 1, 4, 2])
    routed, plain = (defense.train()(x, y, route=way).features for way in (Route(backward_tau=2.0), None))
    assert torch.equal(routed, plain)
    assert torch.equal(*(torch.autograd.grad(each.square().sum(), x)[0] for each in (routed, plain)))
