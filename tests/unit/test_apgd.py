"""What Auto-PGD promises beside being AutoAttack's: exits, budgets, noise, precision, refusals."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from fsr_lab.attack.apgd import APGD
from fsr_lab.core import losses
from fsr_lab.core.crafting import Policy
from fsr_lab.core.objective import DLR, CrossEntropy, Margin, OnLogits, TargetedDLR, TargetedMargin
from fsr_lab.core.targets import Ranked, Towards
from fsr_lab.core.threat import Threat
from fsr_lab.core.types import SampleLoss

THREATS = {"linf": Threat(norm="linf", eps=8 / 255), "l2": Threat(norm="l2", eps=0.3)}
LOSSES = {"ce": CrossEntropy(), "dlr": DLR()}


def towards(loss):
    return Towards(loss=loss, target=Ranked(rank=1))


def on(loss):
    return OnLogits(loss) if isinstance(loss, SampleLoss) else towards(loss)


def wrong(model, x_adv, y):
    with torch.no_grad():
        return model(x_adv).argmax(1) != y


@pytest.mark.parametrize("norm", THREATS)
def test_a_linear_models_worst_point_is_found(norm, batch):
    x = 0.3 + 0.4 * batch[0]  # out of reach of the bounds 0 and 1
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    y = model(x).argmax(1)
    weight = model[1].weight.detach().reshape(2, 3, 8, 8)
    direction = weight[1 - y] - weight[y]
    length = direction.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    threat = Threat(norm=norm, eps={"linf": 0.02, "l2": 0.2}[norm])
    worst = x + threat.eps * (direction.sign() if norm == "linf" else direction / length)
    torch.testing.assert_close(APGD(threat=threat)(model, x, y), worst, atol=1e-4, rtol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_of_a_sample_not_fooled_the_highest_loss_seen_is_returned(loss, trained, recorder):
    model, x, y = trained
    spy = recorder(model)
    right = ~wrong(model, x, y)
    x, y = x[right], y[right]
    found = APGD(threat=THREATS["linf"], objective=OnLogits(LOSSES[loss]), steps=30)(spy, x, y)
    with torch.no_grad():
        seen = torch.stack([LOSSES[loss](model(at), y) for at in spy.asked[1:]])
        value = LOSSES[loss](model(found), y)
    kept = ~wrong(model, found, y)
    assert kept.sum() > 5
    torch.testing.assert_close(value[kept], seen.amax(0)[kept], atol=1e-12, rtol=0)
    assert (seen[0][kept] < value[kept]).all()


def test_whom_one_target_fools_the_next_one_skips(trained, recorder):
    model, x, y = trained
    spy = recorder(model)
    APGD(threat=THREATS["linf"], objective=towards(TargetedDLR()), targets=3, steps=10)(spy, x, y)
    left = [~wrong(model, x, y)]
    # after each run its points are judged: the twelfth forward of each
    for run in range(3):
        points = spy.asked[12 * (run + 1)]
        assert len(points) == len(spy.asked[12 * run + 1]) == left[-1].sum()
        now = left[-1].clone()
        now[left[-1]] = ~wrong(model, points, y[left[-1]])
        left.append(now)
    assert len(spy.asked) == 1 + 3 * 12
    assert left[0].sum() > left[1].sum() > left[3].sum() > 0


def test_of_several_runs_the_smallest_margin_is_kept(trained, recorder):
    model, x, y = trained
    spy = recorder(model)
    found = APGD(threat=THREATS["linf"], restarts=3, steps=5)(spy, x, y)
    kept = ~wrong(model, found, y)
    asked = spy.asked[7::7]
    assert len(asked) == 3
    # those that are right to the end were in every run
    alive, margins = ~wrong(model, x, y), []
    for points in asked:
        margin = torch.full((len(y),), torch.nan, dtype=torch.float64)
        margin[alive] = losses.margin(model(points), y[alive]).detach()
        margins.append(margin)
        alive = alive & ~(margin <= 0)
    assert torch.equal(alive, kept)
    margin = losses.margin(model(found), y).detach()
    torch.testing.assert_close(margin[kept], torch.stack(margins).amin(0)[kept], atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "options",
    [{}, {"objective": OnLogits(DLR())}, {"objective": towards(TargetedDLR()), "targets": 9}, {"restarts": 2}],
    ids=str,
)
@pytest.mark.parametrize("norm", THREATS)
def test_an_early_exit_saves_passes_and_changes_no_outcome(norm, options, trained, recorder):
    model, x, y = trained
    attack = APGD(threat=THREATS[norm], steps=35, **options)
    found, spent = [], []
    for way in (attack, replace(attack, early_exit=True)):
        torch.manual_seed(2)
        spy = recorder(model)
        found.append(way(spy, x, y))
        spent.append(spy.samples)
    fooled = wrong(model, found[0], y)
    assert torch.equal(wrong(model, found[1], y), fooled)
    torch.testing.assert_close(found[1][~fooled], found[0][~fooled], atol=1e-6, rtol=0)
    assert spent[1] < 0.95 * spent[0]


def test_an_early_exit_ends_a_run_of_which_nobody_is_left(linear, batch, recorder):
    x = batch[0]
    y = linear(x).argmax(1)
    spy = recorder(linear)
    attack = APGD(threat=Threat(norm="linf", eps=0.5), early_exit=True)
    assert wrong(linear, attack(spy, x, y), y).all()
    assert len(spy.asked) == 1 + 11


def test_who_is_left_changes_no_draw(trained):
    model, x, y = trained
    attack = APGD(threat=THREATS["linf"], steps=5)
    found = []
    for first in (model(x[:1]).argmax(1), model(x[:1]).argmin(1)):
        torch.manual_seed(4)
        found.append(attack(model, x, torch.cat([first, y[1:]])))
    torch.testing.assert_close(found[0][1:], found[1][1:], atol=1e-9, rtol=0)
    assert not torch.equal(found[0][0], x[0])
    assert torch.equal(found[1][0], x[0])  # wrong from the beginning: left as it is


class Deceived:
    """Two rivals of class 0: the likelier one, 1, is out of reach, and 2 is not; in bfloat16 all seems lost at once."""

    def __call__(self, x):
        level = x.flatten(1).mean(1)
        zero = torch.zeros_like(level)
        if torch.is_autocast_enabled("cpu"):
            zero = zero - 100
        return torch.stack([1 + zero, 0 * level + 0.5, 10 * level - 5, 0 * level - 9], dim=1)


@pytest.mark.parametrize("early_exit", [False, True])
def test_a_sample_that_bfloat16_alone_gets_wrong_is_not_lost(early_exit):
    x, y = torch.full((3, 3, 4, 4), 0.5), torch.zeros(3, dtype=torch.int64)
    policy = Policy(dtype="bfloat16")
    attack = APGD(
        threat=Threat(norm="linf", eps=0.2), objective=towards(TargetedMargin()), targets=3, steps=20, policy=policy,
        early_exit=early_exit,
    )  # fmt: skip
    model = Deceived()
    assert wrong(model, attack(model, x, y), y).all()


def test_a_sample_that_bfloat16_alone_gets_wrong_stays_to_the_end(recorder):
    x, y = torch.full((3, 3, 4, 4), 0.5), torch.zeros(3, dtype=torch.int64)
    attack = APGD(
        threat=Threat(norm="linf", eps=0.02), objective=towards(TargetedMargin()), targets=1, steps=40, early_exit=True,
        policy=Policy(dtype="bfloat16"),
    )  # fmt: skip
    spy = recorder(Deceived())
    attack(spy, x, y)
    assert spy.gradients == 40


@pytest.mark.parametrize("options", [{}, {"objective": towards(TargetedDLR()), "targets": 9}], ids=str)
def test_bfloat16_fools_as_many(options, trained):
    model, x, y = copy.deepcopy(trained[0]).float(), trained[1].float(), trained[2]
    attack = APGD(threat=THREATS["linf"], steps=50, early_exit=True, **options)
    fast = replace(attack, policy=Policy(dtype="bfloat16", channels_last=True))
    fooled = [wrong(model, way(model, x, y), y).sum().item() for way in (attack, fast)]
    assert fooled[1] >= fooled[0] - 1


class Noisy(nn.Module):
    """A linear model whose weights are drawn anew in every noisy forward."""

    training_noise = True

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 192))
        self.asked = []

    def forward(self, x):
        self.asked.append(x.detach())
        weight = self.weight + torch.randn(4, 192) if self.training else self.weight
        return x.flatten(1) @ weight.T


def test_eot_averages_gradients_over_noisy_forwards():
    model, x = Noisy(), 0.3 + 0.4 * torch.rand(5, 3, 8, 8)
    y = model.eval()(x).argmax(1)
    attack = APGD(threat=THREATS["l2"], eot=6, steps=2, random_start=False)
    model.asked.clear()
    torch.manual_seed(9)
    attack(model, x, y)
    asked = model.asked[: 1 + 6 + 6 + 1]
    assert len(asked) == 14
    assert len(model.asked) <= 15  # whom a draw fooled, the deployed model judges
    torch.manual_seed(9)
    image = x.clone().requires_grad_()
    total = sum(
        functional.cross_entropy(image.flatten(1) @ (model.weight.detach() + torch.randn(4, 192)).T, y, reduction="sum")
        for _ in range(6)
    )
    (gradient,) = torch.autograd.grad(total, image)
    wanted = x + 0.3 * gradient / gradient.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    assert all(torch.equal(at, x) for at in asked[:7])
    assert all(torch.equal(at, asked[7]) for at in asked[8:13])
    torch.testing.assert_close(asked[7], wanted, atol=1e-5, rtol=0)


def test_noise_is_repeated_by_a_seed():
    model, x = Noisy().eval(), 0.3 + 0.4 * torch.rand(5, 3, 8, 8)
    y = model(x).argmax(1)
    attack = APGD(threat=THREATS["linf"], eot=3, steps=5, random_start=False)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(attack(model, x, y))
    assert attack.is_random
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def few(num_classes, x):
    """A linear network of so many classes, and the labels it gives."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes))
    return model, model(x).argmax(1)


@pytest.mark.parametrize(("num_classes", "forwards"), [(2, 3), (3, 2 * 4), (4, 3 * 4)])  # of one run nothing is judged
def test_targets_end_with_the_classes(num_classes, forwards, batch, recorder):
    x = batch[0]
    model, y = few(num_classes, x)
    spy = recorder(model)
    APGD(threat=Threat(norm="linf", eps=1e-6), objective=towards(TargetedMargin()), targets=9, steps=2)(spy, x, y)
    assert len(spy.asked) == 1 + forwards


@pytest.mark.parametrize(
    ("num_classes", "options", "message", "cure"),
    [
        (
            2,
            {"objective": OnLogits(DLR())},
            "expected at least 3 classes for dlr, got 2; take the loss Margin",
            {"objective": OnLogits(Margin())},
        ),
        (
            3,
            {"objective": towards(TargetedDLR()), "targets": 9},
            "expected at least 4 classes for targeted dlr, got 3; take the loss TargetedMargin",
            {"objective": towards(TargetedMargin()), "targets": 9},
        ),
    ],
)
@pytest.mark.parametrize("norm", THREATS)
def test_a_loss_that_needs_more_classes_names_the_one_to_take(norm, num_classes, options, message, cure, batch):
    x = batch[0]
    model, y = few(num_classes, x)
    with pytest.raises(ValueError, match=f"^{message}$"):
        APGD(threat=THREATS[norm], **options)(model, x, y)
    found = APGD(threat=replace(THREATS[norm], eps=5.0), **cure)(model, x, y)
    assert wrong(model, found, y).all()


@pytest.mark.parametrize("norm", THREATS)
def test_a_batch_in_channels_last_order_starts_at_the_same_points(norm, trained, recorder):
    model, x, y = trained
    starts = []
    for images in (x, x.contiguous(memory_format=torch.channels_last)):
        torch.manual_seed(6)
        spy = recorder(model)
        APGD(threat=THREATS[norm], steps=1)(spy, images, y)
        starts.append(spy.asked[1])
    torch.testing.assert_close(starts[1], starts[0], atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "expected steps to be a whole number of at least 1, got 0"),
        ({"restarts": 0}, "expected restarts"),
        ({"targets": -1}, "expected targets"),
        ({"eot": 0}, "expected eot"),
        ({"rho": -1}, "of at least 0"),
        ({"targets": 9}, r"CrossEntropy\(\) aims at no class: set targets=0"),
        ({"objective": towards(TargetedDLR())}, r"TargetedDLR\(\) needs classes to aim at: set targets"),
        ({"eot": 2, "early_exit": True}, "early_exit would let a sample go for one lucky draw"),
    ],
)
def test_values_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        APGD(threat=THREATS["linf"], **options)


@pytest.mark.parametrize(
    ("loss", "targets", "least", "instead"),
    [(DLR(), 0, 3, Margin()), (TargetedDLR(), 9, 4, TargetedMargin()), (CrossEntropy(), 0, 2, None)],
)
def test_a_loss_of_too_many_classes_is_replaced_by_the_margin(loss, targets, least, instead):
    attack = APGD(threat=Threat(norm="linf", eps=0.1), objective=on(loss), targets=targets)
    assert attack.for_classes(least) is attack or attack.for_classes(least) == attack
    if instead is not None:
        assert attack.for_classes(least - 1) == replace(attack, objective=on(instead))
