import functools
import math

import numpy as np
import pytest
import torch

from fsr_lab.core import losses
from fsr_lab.core.objective import (
    DLR,
    CrossEntropy,
    JointWithAux,
    KLFromClean,
    Margin,
    MarginTerm,
    OnLogits,
    Scaled,
    Standardised,
    TargetedDLR,
    TargetedMargin,
)
from fsr_lab.core.types import Forward

Z = torch.tensor([[2.0, 1.0, 0.5, -1.0, 0.0]])
Y = torch.tensor([1])


class FakeDefended:
    """Logits and aux are linear in the image, so that every value is known."""

    has_attack_terms = True

    def __init__(self, weight, terms=True):
        self.weight, self.terms, self.calls = weight, terms, 0

    def __call__(self, x):
        self.calls += 1
        return x.flatten(1) @ self.weight

    def forward_with_aux(self, x, targets=None):
        logits = self(x)
        return Forward(logits, {"layer4.0:in": {"p|odd": 2 * logits}, "b": {"q": 3 * logits, "r": x.mean((1, 2, 3))}})

    def attack_terms(self, adv, y, *, clean, loss):
        if not self.terms:
            return None
        clean_aux = None if clean is None else clean.aux["b"]["q"]
        return 0.5 * loss(adv.aux["b"]["q"], y, clean_aux)


@pytest.fixture
def fake():
    return FakeDefended(torch.randn(12, 4))


@pytest.fixture
def images():
    return torch.rand(5, 3, 2, 2), torch.rand(5, 3, 2, 2), torch.tensor([0, 1, 2, 3, 0])


def test_golden_values_of_the_sample_losses():
    assert CrossEntropy()(Z, Y).item() == pytest.approx(1.574438, abs=6e-7)
    assert Margin(kappa=50.0)(Z, Y).item() == pytest.approx(-49.0)
    assert Margin()(Z, Y).item() == 0
    assert DLR()(Z, Y).item() == pytest.approx(0.666667, abs=6e-7)
    assert TargetedDLR()(Z, Y, torch.tensor([2])).item() == pytest.approx(-0.285714, abs=6e-7)
    assert TargetedMargin()(Z, Y, torch.tensor([2])).item() == -0.5
    assert TargetedMargin()(Z, Y, torch.tensor([0])).item() == 1.0
    assert KLFromClean()(torch.tensor([[1.0, 1.5, 0, 0.5, -0.5]]), Y, Z).item() == pytest.approx(0.290988, abs=6e-7)


def test_the_margin_leaves_samples_beyond_its_confidence_alone():
    logits = torch.tensor([[3.0, 0.0], [0.0, 3.0], [0.0, 0.5]], requires_grad=True)
    y = torch.tensor([0, 0, 0])
    value = Margin(kappa=1.0)(logits, y)
    assert value.tolist() == [-4.0, 0.0, -0.5]
    value.sum().backward()
    assert logits.grad.tolist() == [[-1.0, 1.0], [0.0, 0.0], [-1.0, 1.0]]


def test_the_terms_of_the_margin_are_its_two_logits_and_sum_to_it():
    logits, y = torch.tensor([[2.0, 1.0, 0.5], [-3.0, -1.0, -2.0]], requires_grad=True), torch.tensor([0, 2])
    true, wrong = MarginTerm(term="true")(logits, y), MarginTerm(term="wrong")(logits, y)
    assert true.tolist() == [-2.0, 2.0]
    assert wrong.tolist() == [1.0, -1.0]
    assert torch.equal(true + wrong, -losses.margin(logits, y))
    (gradient,) = torch.autograd.grad(wrong.sum(), logits)
    assert gradient.tolist() == [[0, 1, 0], [0, 1, 0]]
    with pytest.raises(ValueError, match="no term of the margin named 'false'"):
        MarginTerm(term="false")


def test_a_scaled_loss_is_the_loss_at_a_temperature():
    # two classes: -log sigmoid of the scaled difference
    logits, y = torch.tensor([[3.0, 1.0], [0.0, 4.0]], dtype=torch.float64), torch.tensor([0, 0])
    found = Scaled(loss=CrossEntropy(), factor=0.25)(logits, y)
    assert found.tolist() == pytest.approx([math.log1p(math.exp(-0.5)), math.log1p(math.exp(1.0))])
    clean = torch.randn(2, 2, dtype=torch.float64)
    found = Scaled(loss=KLFromClean(), factor=3)(logits, y, clean)
    assert torch.equal(found, losses.kl(3 * clean, 3 * logits))
    for factor in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="factor above 0"):
            Scaled(loss=CrossEntropy(), factor=factor)


def test_a_low_scale_brings_a_saturated_gradient_back():
    logits, y = torch.tensor([[400.0, 0.0, -100.0]], requires_grad=True), torch.tensor([0])
    plain, scaled, own = (
        torch.autograd.grad(loss(logits, y).sum(), logits)[0]
        for loss in (
            CrossEntropy(), Scaled(loss=CrossEntropy(), factor=0.01), Standardised(loss=CrossEntropy()),
        )
    )  # fmt: skip
    assert (plain == 0).all()
    assert scaled[0, 0] < -1e-4
    assert own[0, 0] < -1e-4


def test_a_standardised_loss_knows_no_scale_and_its_gradient_is_that_at_a_fixed_temperature():
    logits, y = torch.randn(6, 5, dtype=torch.float64, requires_grad=True), torch.arange(6) % 5
    loss = Standardised(loss=CrossEntropy())
    values = [
        math.log(sum(math.exp((z - row[label]) / np.std(row)) for z in row))
        for row, label in zip(logits.detach().numpy(), y, strict=True)
    ]
    assert loss(logits, y).tolist() == pytest.approx(values)
    torch.testing.assert_close(loss(7 * logits, y), loss(logits, y))
    (gradient,) = torch.autograd.grad(loss(logits, y).sum(), logits)
    deviation = logits.detach().std(1, correction=0, keepdim=True)
    wanted = ((logits / deviation).softmax(1) - torch.nn.functional.one_hot(y, 5)) / deviation
    torch.testing.assert_close(gradient, wanted)
    found = Standardised(loss=KLFromClean())(logits, y, 3 * logits)
    torch.testing.assert_close(found, torch.zeros_like(found))
    equal = torch.zeros(1, 4, requires_grad=True)
    assert torch.autograd.grad(loss(equal, torch.tensor([1])).sum(), equal)[0].isfinite().all()


@pytest.mark.parametrize("make", [functools.partial(Scaled, factor=2.0), Standardised])
def test_a_loss_on_other_logits_is_otherwise_the_loss(make):
    assert make(loss=KLFromClean()).needs_clean
    assert not make(loss=DLR()).needs_clean
    assert make(loss=DLR()).for_classes(2) == make(loss=Margin())
    assert make(loss=DLR()).for_classes(3) == make(loss=DLR())
    assert make(loss=CrossEntropy()).for_classes(2) == make(loss=CrossEntropy())
    assert make(loss=make(loss=DLR())).for_classes(2) == make(loss=make(loss=Margin()))
    assert hash(make(loss=DLR())) == hash(make(loss=DLR()))
    torch.testing.assert_close(make(loss=DLR())(Z, Y), DLR()(Z, Y))  # scale-free already


@pytest.mark.parametrize(("loss", "needs"), [(CrossEntropy(), 0), (Margin(), 0), (DLR(), 0), (KLFromClean(), 1)])
def test_clean_logits_are_computed_only_where_they_are_needed(loss, needs, fake, images):
    x, x_adv, y = images
    assert loss.needs_clean == bool(needs)
    for objective in (OnLogits(loss), JointWithAux(loss)):
        fake.calls = 0
        prepared = objective.prepare(fake, x, y)
        assert fake.calls == needs
        assert bool(prepared) == bool(needs)
        assert objective(fake, x_adv, y, prepared).shape == (5,)
        assert fake.calls == needs + 1


def test_kl_without_clean_logits_is_refused():
    with pytest.raises(ValueError, match="compares with the clean logits: pass clean_logits"):
        KLFromClean()(Z, Y)


def test_on_logits_raises_the_loss_of_the_logits(fake, images):
    x, x_adv, y = images
    objective = OnLogits(KLFromClean())
    found = objective(fake, x_adv, y, objective.prepare(fake, x, y))
    assert torch.equal(found, losses.kl(fake(x), fake(x_adv)))


def test_a_joint_objective_adds_the_defences_terms(fake, images):
    x, x_adv, y = images
    z, z_adv = fake(x), fake(x_adv)
    joint = JointWithAux(CrossEntropy())
    found = joint(fake, x_adv, y, joint.prepare(fake, x, y))
    wanted = losses.cross_entropy(z_adv, y) + 0.5 * losses.cross_entropy(3 * z_adv, y)
    torch.testing.assert_close(found, wanted)
    joint = JointWithAux(KLFromClean())
    found = joint(fake, x_adv, y, joint.prepare(fake, x, y))
    torch.testing.assert_close(found, losses.kl(z, z_adv) + 0.5 * losses.kl(3 * z, 3 * z_adv))


def test_a_joint_objective_of_a_silent_defence_is_the_plain_one(fake, images):
    _, x_adv, y = images
    fake.terms = False
    joint = JointWithAux(CrossEntropy())
    assert torch.equal(joint(fake, x_adv, y, {}), losses.cross_entropy(fake(x_adv), y))


@pytest.mark.parametrize("loss", [CrossEntropy(), KLFromClean()])
def test_a_joint_objective_of_any_other_callable_is_the_plain_one(loss, fake, images):
    x, x_adv, y = images
    plain, joint = OnLogits(loss), JointWithAux(loss)
    fake.has_attack_terms = False  # FSR: auxiliary tensors, but nothing that crafting must raise
    fake.forward_with_aux = None
    for model in (lambda images: images.flatten(1) @ fake.weight, fake):
        wanted = plain(model, x_adv, y, plain.prepare(model, x, y))
        prepared = joint.prepare(model, x, y)
        assert prepared.keys() == ({"logits"} if loss.needs_clean else set())
        assert torch.equal(joint(model, x_adv, y, prepared), wanted)


@pytest.mark.parametrize("make", [OnLogits, JointWithAux])
def test_what_is_prepared_survives_compaction_row_by_row(make, fake, images):
    x, x_adv, y = images
    objective = make(KLFromClean())
    prepared = objective.prepare(fake, x, y)
    assert all(len(value) == 5 for value in prepared.values())
    keep = torch.tensor([True, False, True, True, False])
    part = {name: value[keep] for name, value in prepared.items()}
    torch.testing.assert_close(objective(fake, x_adv[keep], y[keep], part), objective(fake, x_adv, y, prepared)[keep])


def test_rows_of_a_forward_are_the_same_samples_everywhere(fake, images):
    forward = fake.forward_with_aux(images[0])
    part = forward.rows(torch.tensor([3, 1]))
    assert torch.equal(part.logits, forward.logits[[3, 1]])
    assert part.aux.keys() == forward.aux.keys()
    assert torch.equal(part.aux["b"]["r"], forward.aux["b"]["r"][[3, 1]])
