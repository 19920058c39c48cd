"""FAB beside AutoAttack's released code (pyautoattack), and on networks whose nearest boundary is known."""

from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional

from fsr_lab.attack.fab import FAB
from fsr_lab.core.crafting import Policy
from fsr_lab.core.threat import Threat

THREATS = {"linf": Threat(norm="linf", eps=0.04), "l2": Threat(norm="l2", eps=0.4)}
ORDER = {"linf": torch.inf, "l2": 2}


def fab(**options):
    defaults = {"targets": 9, "steps": 100, "restarts": 1, "alpha_max": 0.1, "eta": 1.05, "beta": 0.9}
    return FAB(**({"threat": THREATS["linf"]} | defaults | options))


def images(count, classes, seed):
    """Noisy images of one template per class: a network learns them in a second, and none is far from a boundary."""
    generator = torch.Generator().manual_seed(5)
    templates = torch.rand(classes, 3, 8, 8, generator=generator)
    y = torch.arange(count) % classes
    noise = torch.randn(count, 3, 8, 8, generator=generator.manual_seed(seed))
    return (0.35 + 0.3 * templates[y] + 0.25 * noise).clamp(0, 1).double(), y


@cache
def trained(classes, activation):
    """A small network after sixty steps of Adam, in float64."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=2), activation(), nn.Flatten(),
        nn.Linear(128, 32), activation(), nn.Linear(32, classes),
    ).double()  # fmt: skip
    x, y = images(256, classes, seed=1)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval()


def length(delta, norm):
    return delta.flatten(1).norm(ORDER[norm], dim=1)


@pytest.fixture
def untrained(classifier, batch):
    """Two convolutions whose boundaries pass amid the batch, in float64; the batch; and what it is taken for."""
    model, x = classifier.eval().double(), batch[0].double()
    with torch.no_grad():
        model[-1].bias -= model(x).mean(0)
    return model, x, model(x).argmax(1)


@pytest.fixture
def released(monkeypatch):
    """Return AutoAttack's FAB as a function of our attack: (attack, model, x, y), in the precision of x."""
    fab_pt = pytest.importorskip("pyautoattack.fab_pt", exc_type=ModuleNotFoundError)

    def perturb(attack, model, x, y):
        reference = fab_pt.FABAttack_PT(
            model, norm={"linf": "Linf", "l2": "L2"}[attack.threat.norm], eps=attack.threat.eps,
            n_iter=attack.steps, n_restarts=attack.restarts, alpha_max=attack.alpha_max, eta=attack.eta,
            beta=attack.beta, targeted=attack.targets > 0, n_target_classes=attack.targets, seed=0, device="cpu",
        )  # fmt: skip
        with monkeypatch.context() as patch:
            if x.dtype == torch.float64:  # it casts images to float32, and makes tensors of the default dtype
                patch.setattr(torch.Tensor, "float", torch.Tensor.double)
                torch.set_default_dtype(torch.float64)
            try:
                return reference.perturb(x, y)
            finally:
                torch.set_default_dtype(torch.float32)

    return perturb


@pytest.mark.parametrize("norm", sorted(THREATS))
@pytest.mark.parametrize(
    ("classes", "targets", "restarts", "activation"),
    [(2, 0, 1, nn.Tanh), (2, 1, 1, nn.ReLU), (3, 2, 2, nn.Tanh), (5, 0, 2, nn.ReLU), (5, 4, 1, nn.Tanh)],
)
def test_finds_the_images_that_the_released_code_finds(norm, classes, targets, restarts, activation, released):
    model = trained(classes, activation)
    x, y = images(40, classes, seed=2)
    attack = fab(threat=THREATS[norm], targets=targets, restarts=restarts, steps=30)
    torch.manual_seed(0)
    found, wanted = attack(model, x, y), released(attack, model, x, y)
    fooled = model(found).argmax(1) != y
    assert 5 < fooled.sum() < 35
    assert torch.equal(fooled, model(wanted).argmax(1) != y)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("targets", [0, 3])
@pytest.mark.parametrize("norm", sorted(THREATS))
def test_finds_them_on_an_untrained_network(norm, targets, untrained, released):
    model, x, y = untrained
    attack = fab(threat=THREATS[norm], targets=targets, steps=60)
    found, wanted = attack(model, x, y), released(attack, model, x, y)
    assert 2 < (model(found).argmax(1) != y).sum() < 8
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("targets", [0, 2])
@pytest.mark.parametrize("norm", sorted(THREATS))
def test_in_float32_it_is_no_weaker_than_the_released_code(norm, targets, released):
    model = deepcopy(trained(3, nn.Tanh)).float()
    x, y = images(300, 3, seed=3)
    x = x.float()
    attack = fab(threat=replace(THREATS[norm], eps=1.5 * THREATS[norm].eps), targets=targets, steps=30)
    found, wanted = attack(model, x, y), released(attack, model, x, y)
    fooled, theirs = (model(x_adv).argmax(1) != y for x_adv in (found, wanted))
    # float32 decides at most on those within a rounding of eps: one sample of 300 is more than was ever seen
    assert fooled.sum() >= theirs.sum() - 1 > 100
    both = fooled & theirs & (length(wanted - x, norm) > 0)
    ratio = length(found - x, norm)[both] / length(wanted - x, norm)[both]
    assert ratio.mean() < 1 + 1e-4


@pytest.mark.parametrize("norm", sorted(THREATS))
def test_stops_just_beyond_a_linear_networks_nearest_boundary(norm, linear):
    model = linear.double()
    with torch.no_grad():  # some classes read few pixels: which boundary is nearest depends on the norm
        model[1].weight[2:, ::2] = 0
        model[1].weight[:2] *= 0.8
    x = 0.3 + 0.4 * torch.rand(40, 3, 8, 8, dtype=torch.float64)
    logits = model(x).detach()
    y = logits.argmax(1)
    ways = model[1].weight.detach()[None] - model[1].weight.detach()[y][:, None]
    dual = ways.norm(1 if norm == "linf" else 2, dim=2)
    distances = ((logits.gather(1, y[:, None]) - logits) / dual).scatter(1, y[:, None], torch.inf)
    distance, nearest = distances.min(1)
    way = ways[torch.arange(40), nearest]
    way = way.sign() if norm == "linf" else way / way.norm(dim=1, keepdim=True)
    eps = distance.median().item() * 1.02
    found = fab(threat=Threat(norm=norm, eps=eps), targets=0)(model, x, y)
    settled = (distance * 1.01 < eps) | (distance > eps)
    assert settled.sum() > 35
    fooled = model(found).argmax(1) != y
    assert torch.equal(fooled[settled], (distance < eps)[settled])
    assert torch.equal(found[~fooled], x[~fooled])
    share = length(found - x, norm)[fooled] / distance[fooled]
    assert 1 < share.min() < share.max() < 1.01
    wanted = (distance[:, None] * way).reshape(x.shape)
    torch.testing.assert_close((found - x)[fooled], wanted[fooled], atol=0.01 * eps, rtol=0)


def test_targets_are_tried_by_rank_and_as_many_as_there_are(linear):
    # three rivals: the second in rank is out of reach, the third a step away
    with torch.no_grad():
        linear[1].weight[1:] = linear[1].weight[0]
        linear[1].weight[2] += 0.1
        linear[1].bias.copy_(torch.tensor([3.0, 2.9, 1.0, -5.0]))
        linear[1].bias[2] -= 0.1 * 192 * 0.5 - 1.7
    x, y = torch.full((2, 3, 8, 8), 0.5), torch.zeros(2, dtype=torch.int64)
    assert linear(x)[0].argsort(descending=True).tolist() == [0, 1, 2, 3]
    fooled = [(linear(fab(targets=targets)(linear, x, y)).argmax(1) != y).all().item() for targets in (1, 2, 3, 9, 0)]
    assert fooled == [False, True, True, True, True]


@pytest.mark.parametrize("targets", [0, 9])
def test_what_is_wrong_already_and_what_is_not_fooled_stays(targets, untrained):
    model, x, y = untrained
    y[:4] = (y[:4] + 1) % 4
    found = fab(threat=Threat(norm="linf", eps=0.5), targets=targets, steps=10)(model, x, y)
    assert torch.equal(found[:4], x[:4])
    assert (model(found)[4:].argmax(1) != y[4:]).all()
    found = fab(threat=Threat(norm="linf", eps=1e-6), targets=targets, steps=10)(model, x, y)
    assert torch.equal(found, x)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.25), ("l2", 1.0)])
def test_a_sample_that_lands_too_near_to_the_boundary_to_move_a_pixel_gets_across(norm, eps):
    # z_y - z_t = m + c m^2, m the image's mean distance from the boundary: where 0.95 c m = 0.05, the curvature takes
    # back a step's overshoot, and the step ends before or beyond the boundary by less than float32 tells pixels apart
    on_boundary = 0.55 + 0.1 * torch.rand(1, 1, 4, 4)

    def bent(x):
        m = (x - on_boundary).flatten(1).mean(1)
        return torch.stack([m + 0.05 / 0.95 / 0.2 * m**2, torch.zeros_like(m)], 1)

    x = on_boundary + 0.2 + 2e-6 * torch.linspace(-1, 1, 500).reshape(-1, 1, 1, 1)
    y = torch.zeros(500, dtype=torch.int64)
    found = fab(threat=Threat(norm=norm, eps=eps), steps=10)(bent, x, y)
    assert (bent(found)[:, 0] <= 0).all()


@pytest.mark.parametrize("norm", sorted(THREATS))
def test_bfloat16_crafting_fools_as_many(norm):
    model = deepcopy(trained(5, nn.ReLU)).float()
    x, y = images(100, 5, seed=4)
    x = x.float()
    fooled = []
    for dtype in ("float32", "bfloat16"):
        found = fab(threat=THREATS[norm], targets=4, steps=30, policy=Policy(dtype=dtype))(model, x, y)
        assert length(found - x, norm).max() <= THREATS[norm].eps + 1e-6
        fooled.append((model(found).argmax(1) != y).sum().item())
    assert 50 < fooled[0] < 90
    # without the second try, at the edge, a fifth of them is missed
    assert fooled[1] >= fooled[0] - 3


@pytest.mark.parametrize("norm", sorted(THREATS))
def test_restarts_begin_half_of_eps_away(norm, linear):
    seen = []
    x = 0.3 + 0.4 * torch.rand(8, 3, 8, 8)
    attack = fab(threat=Threat(norm=norm, eps=1e-3), targets=1, steps=1, restarts=3)
    assert torch.equal(attack(lambda v: linear(seen.append(v.detach()) or v), x, linear(x).argmax(1)), x)
    # first all are classified; then each run asks at its start, after its step, and of what it found
    starts = seen[1::3]
    assert torch.equal(starts[0], x)
    assert not torch.equal(starts[1], starts[2])
    for start in starts[1:]:
        torch.testing.assert_close(length(start - x, norm), torch.full((8,), 5e-4), atol=1e-7, rtol=0)


def test_a_callable_may_compute_in_another_precision_than_the_images(linear, batch):
    x, model = batch[0], linear.double()
    y = model(x.double()).argmax(1)
    found = fab(threat=Threat(norm="linf", eps=0.5))(lambda images: model(images.double()), x, y)
    assert found.dtype == torch.float32
    assert (model(found.double()).argmax(1) != y).all()


def test_the_model_is_never_shown_anything_but_images():
    # wrong in bfloat16 alone, and flat: what fools the crafting precision is the clean image itself
    shown = []

    def model(x):
        shown.append(bool(((x >= 0) & (x <= 1)).all()))
        right = -1.0 if torch.is_autocast_enabled("cpu") else 1.0
        flat = 0 * x.flatten(1).sum(1)
        return torch.stack([flat + right, flat], 1)

    x, y = torch.rand(3, 1, 4, 4), torch.zeros(3, dtype=torch.int64)
    assert torch.equal(fab(steps=3, policy=Policy(dtype="bfloat16"))(model, x, y), x)
    assert all(shown)


@pytest.mark.parametrize("norm", sorted(THREATS))
def test_restarts_draw_alike_whatever_the_strides(norm, linear):
    x = torch.rand(8, 3, 8, 8)
    y = linear(x).argmax(1)
    attack = fab(threat=Threat(norm=norm, eps=1e-3), targets=1, steps=1, restarts=2)
    starts = []
    for images in (x, x.contiguous(memory_format=torch.channels_last)):
        shown = []
        torch.manual_seed(3)
        attack(lambda v, shown=shown: linear(shown.append(v.detach()) or v), images, y)
        # first all are classified; then each run asks at its start, after its step, and of what it found
        starts.append(shown[4])
    assert not torch.equal(starts[0], x)
    assert torch.equal(*starts)


@pytest.mark.parametrize(("targets", "turns", "gradients"), [(9, 3, 1), (2, 2, 1), (0, 1, 3)])
def test_a_step_costs_two_forward_passes_and_a_gradient_per_class(targets, turns, gradients, linear, batch):
    passes = {"forward": 0, "backward": 0}

    def counted(x):
        passes["forward"] += 1
        logits = linear(x)
        if logits.requires_grad:
            x.register_hook(lambda _: passes.update(backward=passes["backward"] + 1))
        return logits

    x = batch[0]
    fab(threat=Threat(norm="linf", eps=0), targets=targets, steps=5, restarts=2)(counted, x, linear(x).argmax(1))
    runs = 2 * turns
    assert passes == {"forward": 1 + runs * (2 * 5 + 1), "backward": runs * 5 * gradients}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": -1}, "expected targets to be a whole number of at least 0, got -1"),
        ({"steps": 0}, "expected steps to be a whole number of at least 1, got 0"),
        ({"restarts": 0}, "expected restarts to be a whole number of at least 1, got 0"),
        ({"alpha_max": 1.1}, "expected alpha_max from 0 to 1, got 1.1"),
        ({"eta": 0.9}, "expected eta from 1 to inf, got 0.9"),
        ({"beta": "3/2"}, "expected beta from 0 to 1, got 1.5"),
    ],
)
def test_values_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fab(**options)
