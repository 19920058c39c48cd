"""Each defect that takes a deep examination to see has its finding; a sound network, with FSR or without, has none."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fsr_lab.attack.pgd import PGD
from fsr_lab.core.defense import FeatureDefense
from fsr_lab.core.route import Route, mask_by
from fsr_lab.core.threat import Threat
from fsr_lab.core.types import DefenseOutput
from fsr_lab.defense.cas import CAS
from fsr_lab.defense.fsr import FSR
from fsr_lab.evaluation import deep_checks, subject
from fsr_lab.evaluation.counting import Counted
from fsr_lab.evaluation.doctor import DEEP, EXAMINATION, examine, left_out
from fsr_lab.evaluation.run import evaluate
from fsr_lab.model.defended import DefendedModel, attach

LINF = Threat(norm="linf", eps=16 / 255)
L2 = Threat(norm="l2", eps=0.5)
OF_MASKS = ("mask-saturation", "mask-gradient", "mask-statistics", "training-noise")
OF_ATTACKS = ("loss-rises", "thousand-steps", "eps-ladder", "black-box")


class Bent(torch.autograd.Function):
    """The identity, with a gradient that a function has bent."""

    @staticmethod
    def forward(ctx, x, bend):
        ctx.bend = bend
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.bend(gradient), None


class Bend(nn.Module):
    def __init__(self, bend):
        super().__init__()
        self.bend = bend

    def forward(self, x):
        return Bent.apply(x, self.bend)


class Saturating(nn.Module):
    def forward(self, z):
        return 9 * torch.sigmoid(100 * z)


class Scale(nn.Module):
    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, z):
        return self.by * z


class TrainingNoise(nn.Module):
    """Noise of a standard deviation, in training mode, as it declares."""

    training_noise = True

    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, z):
        return z + self.size * torch.randn_like(z) if self.training else z


class Gate(FeatureDefense):
    """m * f with m = sigmoid(a f / 0.1), the least that has a score, a mask and its routes."""

    routes = frozenset({"f_tilde", "stop", "backward_tau"})

    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def forward(self, features, targets=None, *, route=None, want_aux=True):
        score = self.slope * features
        mask = mask_by(route or Route(), score, 0.1)
        return DefenseOutput(mask * features, {"score": score, "mask": mask} if want_aux else {})


def images(count):
    """Return images of four patterns under noise, and their labels."""
    draw = torch.Generator().manual_seed(count)
    patterns = 0.5 + 0.1 * torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).sign()
    y = torch.arange(count) % 4
    return (patterns[y] + 0.1 * torch.randn(count, 3, 8, 8, generator=draw)).clamp(0, 1), y


def untrained(defense=None):
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4),
    )  # fmt: skip
    return attach(net, {} if defense is None else {"2": defense}, image_shape=(3, 8, 8), num_classes=4)


BUILT = {"plain": None, "fsr": partial(FSR, width=4), "cas": CAS}


@pytest.fixture(scope="module")
def states():
    """Return the weights of a network with each defence after 25 steps."""
    found, (x, y) = {}, images(256)
    for name, defense in BUILT.items():
        torch.manual_seed(0)
        net = untrained(defense)
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(25):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
        found[name] = net.state_dict()
    return found


@pytest.fixture
def trained(states):
    """Return a function that gives a trained network of this test's own."""

    def give(name="plain"):
        net = untrained(BUILT[name])
        net.load_state_dict(states[name])
        return net.eval()

    return give


@pytest.fixture
def brief(monkeypatch):
    """Make long attacks short."""
    monkeypatch.setattr(deep_checks, "QUERIES", 200)
    for module in (subject, deep_checks):
        monkeypatch.setattr(module, "LONG", (1, 3, 10, 100))


@pytest.fixture
def data():
    return images(64)


def finding(check, net, data, threat=LINF):
    """Return what one check of the deep examination finds."""
    examined = subject.Subject(net, *data, threat)
    with examined.at_rest():
        return DEEP[check].run(examined)


def fsr_of(net):
    return net.defenses["2"]


@pytest.mark.parametrize(
    ("name", "threat"),
    [
        ("plain", LINF), ("plain", L2), pytest.param("cas", LINF, marks=pytest.mark.slow),
        pytest.param("fsr", LINF, marks=pytest.mark.slow), pytest.param("fsr", L2, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_sound_network_passes_whatever_concerns_it(trained, data, name, threat):
    assert_sound(trained, data, name, threat)


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("name", ["fsr", "cas"])
def test_a_sound_network_passes_under_shorter_attacks(trained, data, name):
    assert_sound(trained, data, name, LINF)


def assert_sound(trained, data, name, threat):
    findings = examine(trained(name), *data, threat, deep=True)
    concerning = {"plain": OF_ATTACKS, "cas": OF_ATTACKS, "fsr": (*OF_MASKS, *OF_ATTACKS)}[name]
    assert [found.check for found in findings] == [*EXAMINATION, *concerning]
    assert [found for found in findings if found.verdict != "pass"] == []
    assert left_out(findings, deep=True) == ()


def test_only_a_deep_examination_costs_more_and_what_it_says(trained, data):
    counted = Counted(trained()).eval()
    shallow = examine(counted, *data, LINF)
    assert [found.check for found in shallow] == list(EXAMINATION)
    counted.reset()
    examine(counted, *data, LINF, deep=True)
    assert 50 * 64 < counted.forwards <= (50 + 920) * 64
    assert 370 * 64 < counted.backwards <= (35 + 380) * 64


def test_what_needs_a_failed_check_is_left_out(trained, data):
    findings = examine(nn.Sequential(trained(), nn.Softmax(1)).eval(), *data, LINF, deep=True)
    assert set(DEEP) & set(left_out(findings, deep=True)) == set(DEEP) - {"mask-saturation"}
    assert "falls-with-eps" in left_out(findings)
    assert not set(DEEP) & set(left_out(findings))


@pytest.mark.usefixtures("brief")
def test_a_callable_and_an_eps_of_zero_are_examined(trained, data):
    net = trained("fsr")
    found = {found.check for found in examine(lambda x: net(x), *data, LINF, deep=True)}
    assert found >= set(OF_ATTACKS)
    assert not found & set(OF_MASKS)  # nothing is known of a function's inside
    nothing = examine(net, *data, Threat(norm="l2", eps=0), deep=True)
    assert {found.check for found in nothing if found.verdict != "pass"} == set()
    assert "eps-ladder" not in {found.check for found in nothing}


@pytest.mark.usefixtures("brief")
def test_an_examination_leaves_the_network_as_it_was(trained, data):
    net = trained("fsr").train()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    first = examine(net, *data, LINF, deep=True)
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert all(module.training and not module._forward_pre_hooks for module in fsr_of(net).modules())
    torch.rand(7)
    assert examine(net, *data, LINF, deep=True) == first


@pytest.mark.usefixtures("brief")
def test_an_evaluation_keeps_the_deep_findings_and_counts_none_of_their_passes(trained, data):
    attacks = {"fgsm": PGD(threat=LINF, steps=1, relative_step=1, random_start=False)}
    shallow, deep = (
        evaluate(trained("fsr"), [data], attacks, threat=LINF, seed=0, deep=is_deep) for is_deep in (False, True)
    )
    added = [found for found in deep.findings if found not in shallow.findings]
    assert [found.check for found in added] == list(DEEP)
    for facts in ("forwards", "backwards", "outcome"):
        assert (getattr(deep, facts) == getattr(shallow, facts)).all()
    assert evaluate(trained("fsr"), [data], {}, threat=LINF, seed=0, deep=True).findings == ()


def test_huge_scores_saturate_the_mask(trained, data):
    net = trained("fsr")
    assert finding("mask-saturation", net, data).verdict == "pass"
    fsr_of(net).separation[-1].weight.data *= 1e4
    found = finding("mask-saturation", net, data)
    assert (found.verdict, found.check) == ("warn", "mask-saturation")
    assert found.value > 0.9
    assert "at 2 " in found.text


def test_the_share_of_flat_units_is_that_of_the_mask_and_of_its_scores():
    # scores 0.2 * f of f in (1, 4, 6, 20): 0.2, 0.8, 1.2, 4; at the temperature 0.1 flat from 0.83 on
    net = DefendedModel(nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (2, 2)), nn.Flatten()), {"1": Gate(0.2)})
    found = finding("mask-saturation", net, (torch.tensor([1.0, 4, 6, 20]).reshape(1, 1, 2, 2), torch.tensor([0])))
    assert found.value == 0.5
    assert found.verdict == "pass"  # not more than half
    assert "scores: 75% beyond 0.5, 50% beyond 1, 25% beyond 2; mean mask 0.97" in found.text


def gated(slope, weights):
    """Return a network of two units behind a gate, z = (w1 m(f1) f1 + w2 m(f2) f2, 0)."""
    net = nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (1, 2)), nn.Flatten(), nn.Linear(2, 2))
    net[3].weight.data = torch.tensor([weights, (0, 0)], dtype=torch.float32)
    return DefendedModel(net, {"1": Gate(slope)})


def test_a_saturated_mask_that_would_lead_elsewhere_hides_from_gradients():
    pair = torch.tensor([0.5, 0.3]).reshape(1, 1, 1, 2), torch.tensor([0])
    # at the slope 6 the masks' exponents are 30 and 18, and at temperature 1 they are 3 and 1.8
    assert finding("mask-gradient", gated(6, (1, 1)), pair).verdict == "pass"  # it would lead the same way
    found = finding("mask-gradient", gated(6, (1, -20)), pair)
    assert (found.verdict, found.check) == ("pass", "mask-gradient")
    steep = torch.tensor([0.5, -0.3]).reshape(1, 1, 1, 2), torch.tensor([0])
    found = finding("mask-gradient", gated(6, (1, 20)), steep)
    assert found.verdict == "warn"
    assert found.value < 1e-3
    assert finding("mask-gradient", gated(0.6, (1, 20)), steep).verdict == "pass"  # it has a slope of its own


def test_a_mask_that_does_nothing_yet_hides_nothing(data):
    found = finding("mask-gradient", untrained(BUILT["fsr"]).eval(), data)
    assert (found.verdict, found.value < 0.01) == ("pass", True)


def test_the_share_through_the_mask_is_that_of_the_derivative():
    # d(m f)/df = m + f m'; one unit, so that the share is f m' / (m + f m') and every cosine is 1
    net = DefendedModel(
        nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (1, 1)), nn.Flatten(), nn.Linear(1, 2)), {"1": Gate(0.1)}
    )
    f = torch.tensor([0.3, 0.9])
    mask = torch.sigmoid(f)
    through = f * mask * (1 - mask)
    found = finding("mask-gradient", net, (f.reshape(2, 1, 1, 1), torch.tensor([0, 1])))
    assert found.value == pytest.approx(float((through / (mask + through)).mean()), rel=1e-5)
    assert "cosine 1.00" in found.text


@pytest.mark.parametrize("net_name", ["separation", "recalibration"])
def test_statistics_of_other_masks_are_far_off(trained, data, net_name):
    net = trained("fsr")
    assert finding("mask-statistics", net, data).value < 0.4
    norm = getattr(fsr_of(net), net_name)[1]
    norm.running_mean += 3 * norm.running_var.sqrt()
    found = finding("mask-statistics", net, data)
    assert found.verdict == "warn"
    assert found.value > 1  # one of two norms of the net is off by three
    assert f"2/{net_name} " in found.text


def test_statistics_of_either_kind_of_image_will_do(trained, data):
    net = trained("fsr")
    wide = Threat(norm="linf", eps=0.5)
    assert finding("mask-statistics", net, data, wide).verdict == "pass"  # trained on clean images, attacked far away


@pytest.mark.parametrize(("size", "verdict"), [(0.01, "pass"), (30, "warn")])
def test_noise_that_training_alone_has_is_looked_at(trained, data, size, verdict):
    found = finding("training-noise", nn.Sequential(trained(), TrainingNoise(size)).eval(), data)
    assert found.verdict == verdict
    assert (abs(found.value) > 0.1) == (verdict == "warn")


@pytest.mark.parametrize(
    ("deployed", "noisy", "verdict", "value"),
    [
        ((1, 0), (0.91, 0.24), "pass", 0.24),
        ((1, 0), (0.89, 0.1), "warn", -0.11),
        ((1, 0), (1, 0.26), "warn", 0.26),
        ((0.5, 0.5), (0.5, 0.24), "warn", -0.26),
    ],
)
def test_noise_may_undo_more_of_the_attacks_than_of_the_clean_images(deployed, noisy, verdict, value):
    clean, adversarial = torch.zeros(64), torch.ones(64)
    examined = SimpleNamespace(
        modules=[TrainingNoise(1)], model=nn.Identity(), x=clean, adversarial=adversarial, clean=deployed[0],
        climb={10: deployed[1]}, accuracy=lambda images: noisy[images is adversarial],
    )  # fmt: skip
    found = DEEP["training-noise"].run(examined)
    assert (found.verdict, found.value) == (verdict, pytest.approx(value))


def wrong_way(net):
    return nn.Sequential(Bend(torch.neg), net).eval()


@pytest.mark.usefixtures("brief")
def test_a_gradient_of_the_wrong_sign_lowers_the_loss_and_loses_to_queries(trained, data):
    right, wide = nn.Sequential(trained(), Scale(0.05)), Threat(norm="linf", eps=0.25)  # so that the loss has room
    found = finding("loss-rises", wrong_way(right), data, wide)
    assert found.verdict == "fail"
    assert found.value > 0.9
    found = finding("black-box", wrong_way(right), data, wide)
    assert found.verdict == "fail"
    assert found.value > 0.3
    assert finding("eps-ladder", wrong_way(right), data).verdict == "fail"
    assert [finding(check, right, data, wide).verdict for check in ("loss-rises", "black-box")] == ["pass", "pass"]


def test_a_gate_without_slope_leaves_everything_at_every_radius(trained, data):
    found = finding("eps-ladder", nn.Sequential(trained(), Saturating()).eval(), data)
    assert found.verdict == "fail"
    assert found.value > 0.5


@pytest.mark.usefixtures("brief")
def test_a_gradient_that_shows_little_at_a_time_needs_more_steps(trained, data):
    shy = nn.Sequential(Bend(lambda gradient: gradient * (torch.rand_like(gradient) < 0.1)), trained()).eval()
    wide = Threat(norm="linf", eps=0.2)
    assert finding("thousand-steps", trained(), data, wide).verdict == "pass"
    found = finding("thousand-steps", shy, data, wide)
    assert found.verdict == "fail"
    assert found.value > 0.2


def climbed(losses, accuracies=(1, 1, 1, 1, 1), n=64):
    standings = map(subject.Standing, losses, accuracies)
    return SimpleNamespace(long_climb=dict(zip((0, 1, 10, 100, 1000), standings, strict=True)), x=torch.zeros(n))


@pytest.mark.parametrize(
    ("losses", "verdict", "value"),
    [
        ((0, 1, 2, 2, 2), "pass", 0),
        ((0, 1, 2, 2, 1.81), "pass", 0.095),
        ((0, 1, 2, 1.79, 2), "warn", 0.105),
        ((0, 1, 2, 2, 1.42), "warn", 0.29),
        ((0, 1, 2, 2, 1.38), "fail", 0.31),
        ((2, 1, 1, 1, 1), "fail", 1),
        ((2, 1.9999, 2, 2, 2), "pass", 0.1),  # no way at all
    ],
)
def test_a_fall_of_the_loss_is_graded_by_its_part_of_the_way(losses, verdict, value):
    found = deep_checks.loss_rises(climbed(losses))
    assert (found.verdict, found.value) == (verdict, pytest.approx(value, abs=1e-3))


@pytest.mark.parametrize(("left", "verdict"), [(8, "pass"), (7, "pass"), (6, "warn"), (5, "fail")])
def test_a_thousand_steps_may_take_one_of_sixteen_more(left, verdict):
    assert deep_checks.thousand_steps(climbed((0,) * 5, (1, 1, 1, 8 / 16, left / 16))).verdict == verdict


def laddered(accuracies, threat=LINF, commonest=0.25):
    """Return a subject with these accuracies unattacked and at radius after radius, and the radii that it is asked."""
    asked, rest = [], iter(accuracies[1:])

    def under_pgd(eps, **options):
        asked.append(eps)
        return next(rest)

    x = torch.zeros(64, 3, 8, 8)
    return SimpleNamespace(threat=threat, x=x, clean=accuracies[0], commonest=commonest, under_pgd=under_pgd), asked


@pytest.mark.parametrize(
    ("accuracies", "verdict"),
    [
        ((1, 1, 0.9, 0.8, 0.6, 0.3, 0.05), "pass"),
        ((1, 1, 0.9, 0.8, 0.6, 0.3, 0.06), "warn"),
        ((1, 1, 0.9, 0.8, 0.6, 0.3, 0.25), "warn"),
        ((1, 1, 0.9, 0.8, 0.6, 0.3, 0.26), "fail"),
        ((1, 1, 0.9, 0.92, 0.6, 0.3, 0), "pass"),  # one image of 64
        ((1, 1, 0.9, 0.94, 0.6, 0.3, 0), "warn"),
    ],
)
def test_the_accuracy_falls_with_the_radius_to_next_to_nothing(accuracies, verdict):
    subject, _ = laddered(accuracies)
    assert deep_checks.eps_ladder(subject).verdict == verdict


@pytest.mark.parametrize(
    ("threat", "radii"),
    [
        (Threat(norm="linf", eps=8 / 255), [eps / 255 for eps in (2, 4, 8, 16, 32, 64)]),
        (Threat(norm="linf", eps=4 / 255), [eps / 255 for eps in (2, 4, 8, 16, 32, 64)]),
        (Threat(norm="linf", eps=0.12), [0.5 / 32, 0.5 / 16, 0.5 / 8, 0.5 / 4, 0.5 / 2, 0.5]),
        (Threat(norm="l2", eps=0.5), [0.125, 0.25, 0.5, 1, 2, 4]),
    ],
    ids=str,
)
def test_the_radii_reach_64_255_or_eight_times_eps(threat, radii):
    subject, asked = laddered([0.0] * 7, threat)
    deep_checks.eps_ladder(subject)
    assert asked == pytest.approx(radii)
