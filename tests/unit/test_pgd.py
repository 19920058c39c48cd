from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from fsr_lab.attack.pgd import PGD
from fsr_lab.core.crafting import Policy
from fsr_lab.core.objective import DLR, CrossEntropy, KLFromClean, Margin, OnLogits
from fsr_lab.core.threat import Threat
from fsr_lab.evaluation.counting import Counted
from fsr_lab.evaluation.run import evaluate

LINF = Threat(norm="linf", eps=8 / 255)
L2 = Threat(norm="l2", eps=0.25)


def pgd(**options):
    return PGD(**({"threat": LINF, "steps": 5, "relative_step": 0.25, "random_start": False} | options))


def textbook(model, x, y, *, eps, step, steps, start):
    """PGD as the paper writes it, by another road: signed steps, a clip to the ball, a clip to the box."""
    x_adv = start.clone()
    for _ in range(steps):
        x_adv.requires_grad_(True)
        functional.cross_entropy(model(x_adv), y, reduction="sum").backward()
        with torch.no_grad():
            moved = x_adv + step * x_adv.grad.sign()
            moved = torch.maximum(torch.minimum(moved, x + eps), x - eps)
        x_adv = moved.clamp(0, 1).detach()
    return x_adv


def test_each_step_moves_then_projects_then_clips(classifier, batch):
    x, y = batch
    model = classifier.eval().double()
    x = x.double()
    attack = pgd(steps=7, relative_step=0.3)
    wanted = textbook(model, x, y, eps=8 / 255, step=0.3 * 8 / 255, steps=7, start=x)
    torch.testing.assert_close(attack(model, x, y), wanted, atol=1e-12, rtol=0)


def test_a_random_start_is_the_threats(classifier, batch):
    x, y = batch
    torch.manual_seed(5)
    start = LINF.random_start(x)
    torch.manual_seed(5)
    wanted = textbook(classifier.eval(), x, y, eps=8 / 255, step=2 / 255, steps=3, start=start)
    torch.manual_seed(5)
    found = pgd(steps=3, random_start=True)(classifier, x, y)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_fgsm_is_one_whole_step(classifier, batch):
    x, y = batch
    classifier.eval()
    image = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(functional.cross_entropy(classifier(image), y), image)
    wanted = (x + 8 / 255 * gradient.sign()).clamp(0, 1)
    torch.testing.assert_close(pgd(steps=1, relative_step=1.0)(classifier, x, y), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("loss", [CrossEntropy(), Margin(kappa=50.0), Margin(), DLR()])
def test_every_loss_finds_the_worst_corner_of_a_linear_model(random_start, loss, batch):
    x = batch[0]
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    weight = model[1].weight.detach().reshape(3, 3, 8, 8)
    with torch.no_grad():  # class 2 is out of the race; of the other two, half of the samples are of each
        model[1].weight[2] = 0
        model[1].bias.copy_(torch.tensor([0.0, 0.0, -1e6]))
        logits = model(x)
        model[1].bias[1] = (logits[:, 0] - logits[:, 1]).sort().values[3:5].mean()
    y = model(x).argmax(1)
    assert y.bincount().tolist() == [4, 4]
    corner = (x + 8 / 255 * (weight[1 - y] - weight[y]).sign()).clamp(0, 1)
    attack = pgd(steps=10, random_start=random_start, objective=OnLogits(loss))
    found = attack(model, x, y)
    # the unbounded margin stops where the sample is lost, at whatever point it then is
    lost = model(corner).argmax(1) != y if loss == Margin() else torch.zeros(8, dtype=torch.bool)
    assert (model(found).argmax(1) != y)[lost].all()
    torch.testing.assert_close(found[~lost], corner[~lost], atol=1e-6, rtol=0)


def test_l2_finds_the_worst_point_of_a_linear_model(linear):
    x, y = 0.3 + 0.4 * torch.rand(8, 3, 8, 8), torch.arange(8) % 2
    with torch.no_grad():
        linear[1].weight[2:] = 0
        linear[1].bias[2:] = -100
    weight = linear[1].weight.detach().reshape(4, 3, 8, 8)
    direction = weight[1 - y] - weight[y]
    length = direction.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    worst = x + 0.25 * direction / length
    found = pgd(threat=L2, steps=20, relative_step=0.1)(linear, x, y)
    torch.testing.assert_close(found, worst, atol=1e-6, rtol=0)
    # from a random start the ball's curvature is followed: nearer with every step, and near after fifty
    found = pgd(threat=L2, steps=50, random_start=True)(linear, x, y)
    torch.testing.assert_close(found, worst, atol=1e-4, rtol=0)


def test_kl_from_a_random_start_raises_the_divergence(linear, batch):
    x, y = batch
    loss = KLFromClean()
    attack = pgd(steps=20, random_start=True, objective=OnLogits(loss))
    start = replace(attack, steps=1, relative_step=0.0)
    values = []
    for way in (start, attack):
        torch.manual_seed(1)
        values.append(loss(linear(way(linear, x, y)), y, linear(x)))
    assert (values[1] > 2 * values[0]).all()


def test_a_steps_size_follows_eps(linear, batch):
    x, y = batch
    for eps in (0.01, 0.1):
        found = pgd(threat=Threat(norm="linf", eps=eps), steps=1)(linear, x, y)
        assert (found - x).abs().max().item() == pytest.approx(eps / 4, abs=1e-6)


def test_iterates_are_those_of_shorter_runs(classifier, batch):
    attack = pgd(steps=6)
    found = attack.iterates(classifier, *batch, at=(2, 6, 4))
    assert sorted(found) == [2, 4, 6]
    for steps, x_adv in found.items():
        assert torch.equal(x_adv, replace(attack, steps=steps)(classifier, *batch))
        assert not x_adv.requires_grad
        assert x_adv.grad_fn is None


def test_the_batch_size_changes_nothing_even_for_the_faintest_gradient(batch):
    class Faint(OnLogits):
        def __call__(self, model, x_adv, y, prepared):
            return 2.0**-149 * model(x_adv).sum(1)  # float32's smallest number: a mean over the batch would lose it

    x, y = batch
    attack = pgd(objective=Faint(CrossEntropy()))
    found = attack(nn.Flatten(), x, y)
    torch.testing.assert_close(found, (x + 8 / 255).clamp(0, 1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_fast_policy_stays_in_the_set_and_is_as_strong(dtype, classifier, batch):
    x, y = batch
    policy = Policy(dtype=dtype, fold=True, channels_last=True)
    classifier.eval()
    with torch.no_grad():
        classifier[8].weight.mul_(50)
    clean = functional.cross_entropy(classifier(x), y).item()
    values = []
    for way in (Policy(), policy):
        x_adv = pgd(steps=10, policy=way)(classifier, x, y)
        assert x_adv.dtype == torch.float32
        assert (x_adv - x).abs().max() <= 8 / 255 + 1e-7
        values.append(functional.cross_entropy(classifier(x_adv), y).item())
    gains = [value - clean for value in values]
    assert gains[0] > 0.05
    assert gains[1] == pytest.approx(gains[0], rel=0.05)


def test_it_is_a_value_with_a_readable_text():
    attack = pgd()
    assert attack == pgd(relative_step="1/4")
    assert "steps=5, relative_step=0.25, random_start=False" in repr(attack)
    with pytest.raises(FrozenInstanceError):
        attack.steps = 3
    with pytest.raises(TypeError, match="unexpected keyword argument 'step'"):
        pgd(step=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "expected steps to be a whole number of at least 1, got 0"),
        ({"relative_step": -0.1}, "of at least 0"),
        ({"relative_step": "quarter"}, "expected a number or a fraction"),
    ],
)
def test_values_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        pgd(**options)


def bumpy_batch(net):
    x = torch.rand(6, 3, 8, 8, dtype=torch.float64)
    return x, net(x).argmax(1)


def kin():
    return {
        "fgsm": pgd(steps=1, relative_step=1), "short": pgd(steps=4, relative_step=0.1),
        "long": pgd(steps=9, relative_step=0.1), "one": pgd(steps=1, relative_step=0.1),
    }  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"momentum": 1.0}, {"threat": L2}, {"objective": OnLogits(Margin())}])
def test_attacks_on_one_path_are_the_same_together_as_alone(bumpy, options):
    model, x, y = bumpy, *bumpy_batch(bumpy)
    attacks = {name: replace(attack, **options) for name, attack in kin().items()}
    counted = Counted(model)
    assert all(attacks["long"].passes_by(attack) for attack in attacks.values())
    found = attacks["long"].together(list(attacks.values()), counted, x, y)
    assert (counted.forwards, counted.backwards) == (9 * len(x), 9 * len(x))
    for attack, x_adv in zip(attacks.values(), found, strict=True):
        assert torch.equal(x_adv, attack(model, x, y))


@pytest.mark.parametrize(
    "change",
    [
        {"relative_step": 0.2}, {"steps": 10}, {"objective": OnLogits(Margin())}, {"threat": L2},
        {"random_start": True}, {"policy": Policy(fold=True)}, {"momentum": 1.0},
    ],
)  # fmt: skip
def test_another_path_is_not_passed_by(change):
    short = kin()["short"]
    assert kin()["long"].passes_by(short)
    assert not kin()["long"].passes_by(replace(short, **change))


@pytest.mark.parametrize("change", [{"random_start": True}, {"keep": "best"}, {"patience": 1}])
def test_a_path_of_ones_own_passes_by_nothing(change):
    long = replace(kin()["long"], **change)
    assert not long.passes_by(replace(kin()["short"], **change))


def test_the_papers_white_box_attacks_need_130_gradients(bumpy):
    model, x, y = bumpy, *bumpy_batch(bumpy)
    attacks = {"fgsm": pgd(steps=1, relative_step=1), "pgd20": pgd(steps=20, relative_step=0.1),
               "pgd100": pgd(steps=100, relative_step=0.1),
               "cw30": pgd(steps=30, relative_step=0.1, objective=OnLogits(Margin()))}  # fmt: skip
    record = evaluate(model, [(x, y)], attacks, threat=LINF, seed=0, doctor=False)
    assert dict(zip(record.attacks, record.backwards // len(x), strict=True)) == {
        "clean": 0, "fgsm": 0, "pgd20": 0, "pgd100": 100, "cw30": 30,
    }  # fmt: skip
    alone = [
        evaluate(model, [(x, y)], {name: attack}, threat=LINF, seed=0, doctor=False) for name, attack in attacks.items()
    ]
    for row, single in enumerate(alone, start=1):
        assert record.margin[row].tobytes() == single.margin[1].tobytes()


@pytest.mark.parametrize("options", [{}, {"momentum": 1.0}, {"keep": "best"}])
def test_a_run_from_where_it_would_start_is_the_run_itself(options, classifier, batch):
    x, y = batch
    attack = pgd(steps=3, **options)
    assert torch.equal(attack.run_from(x, classifier, x, y), attack(classifier, x, y))


def test_a_run_goes_on_from_where_another_one_stopped(classifier, batch):
    x, y = batch
    attack = pgd(steps=3)
    half = attack(classifier, x, y)
    before = half.clone()
    found = attack.run_from(half, classifier, x, y)
    assert torch.equal(found, replace(attack, steps=6)(classifier, x, y))
    assert torch.equal(half, before)
    assert not found.requires_grad
    assert (found - x).abs().max() <= 8 / 255 + 1e-6


def test_a_run_from_elsewhere_draws_no_start(classifier, batch):
    x, y = batch
    state = torch.get_rng_state()
    found = pgd(random_start=True).run_from(x, classifier, x, y)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found, pgd()(classifier, x, y))
