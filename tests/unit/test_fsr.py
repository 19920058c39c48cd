"""FSR against the equations of its paper, transcribed; the numbers are those of the method's specification."""

import copy

import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional

from fsr_lab.core.route import Route
from fsr_lab.core.types import FeatureShape, Forward
from fsr_lab.defense import masks
from fsr_lab.defense.fsr import FSR, Parts
from fsr_lab.defense.masks import logistic_noise
from fsr_lab.model.defended import attach
from fsr_lab.model.tiny_cnn import TinyCNN

SHAPE = FeatureShape(6, 4, 4)
FIELDS = ("score", "mask", "f_plus", "f_minus", "f_tilde_minus", "f_tilde")


class Fixed(nn.Module):
    """A net that gives what it is told, in the shape of its input."""

    def __init__(self, value):
        super().__init__()
        self.value = torch.as_tensor(value, dtype=torch.float32)

    def forward(self, features):
        return self.value.expand_as(features).to(features.dtype)


def literal_mask(r, tau, u1, u2):
    """Eq. 2, letter by letter: the softmax of two log-probabilities with a Gumbel draw on each."""
    g1, g2 = -torch.log(-torch.log(u1)), -torch.log(-torch.log(u2))
    p = 1 / (1 + torch.exp(-r))
    robust = torch.exp((torch.log(p) + g1) / tau)
    non_robust = torch.exp((torch.log(1 - p) + g2) / tau)
    return robust / (robust + non_robust)


@pytest.fixture
def features():
    return torch.randn(4, 6, 4, 4)


@pytest.fixture
def fsr():
    """FSR whose BatchNorm statistics and scores are not those of a fresh net: masks on both sides of one half."""
    defense = FSR(SHAPE, 10, width=8)
    for _ in range(30):
        defense(3 * torch.randn(8, 6, 4, 4))
    nn.init.normal_(defense.separation[-1].weight, std=0.3)
    return defense.eval()


def parts_of(defense, features, route=None):
    """Return all parts under the noise of the moment."""
    score = defense.score(features)
    return defense.separate(features, score, defense.draw(features, score), route or Route())


def scored(score, **options):
    """Return FSR with a separation net that gives `score`."""
    defense = FSR(FeatureShape(1, 1, 1), 10, width=4, **options)
    defense.separation = Fixed(score)
    return defense


def test_in_eval_mode_the_mask_is_equation_2_with_equal_draws():
    r = torch.linspace(-3, 3, 601, dtype=torch.float64).reshape(1, 1, 1, -1)
    defense = scored(0.0).eval()
    defense.separation = nn.Identity()
    for dtype in (torch.float32, torch.float64):
        mask = parts_of(defense.to(dtype), r.to(dtype)).mask
        assert mask.dtype == dtype
        for u in (0.5, 0.1):  # the draws cancel, whatever they are
            both = torch.full_like(r, u)
            torch.testing.assert_close(mask.double(), literal_mask(r, 0.1, both, both), atol=1e-6, rtol=0)
        torch.testing.assert_close(mask.double(), torch.sigmoid(r.to(dtype) / 0.1).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("score", "mask"), [(-1, 4.54e-5), (-0.2, 0.119203), (0, 0.5), (0.2, 0.880797), (1, 0.999955)])
def test_golden_masks(score, mask):
    found = parts_of(scored(score).eval(), torch.ones(1, 1, 1, 1)).mask.item()
    assert found == pytest.approx(mask, abs=6e-7)


def test_golden_training_mask(monkeypatch):
    u1, u2 = torch.tensor(0.2, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    g1, g2 = -torch.log(-torch.log(u1)), -torch.log(-torch.log(u2))
    assert (g1.item(), g2.item()) == pytest.approx((-0.4759, 1.0309), abs=6e-5)
    monkeypatch.setattr(masks, "logistic_noise", lambda like: (g1 - g2).expand_as(like))
    defense = scored(0.3).double().train()
    found = parts_of(defense, torch.ones(2, 1, 1, 1, dtype=torch.float64)).mask[0].item()
    assert found == pytest.approx(literal_mask(torch.tensor(0.3, dtype=torch.float64), 0.1, u1, u2).item(), rel=1e-6)
    assert found == pytest.approx(5.7394e-6, rel=1e-4)


def test_golden_module_algebra():
    defense = FSR(FeatureShape(2, 1, 1), 10, width=4).eval()
    defense.separation = Fixed(torch.tensor([0.05, -0.1]).reshape(1, 2, 1, 1))
    defense.recalibration = Fixed(torch.tensor([0.5, 0.25]).reshape(1, 2, 1, 1))
    out = defense(torch.tensor([1.0, -2.0]).reshape(1, 2, 1, 1))
    assert out.aux["mask"].flatten().tolist() == pytest.approx([0.622459, 0.268941], abs=6e-7)
    assert out.features.flatten().tolist() == pytest.approx([1.188770, -1.817235], abs=6e-7)


@pytest.mark.parametrize("r", [0.0, 0.5, 1.0, 2.0])
def test_the_training_mask_has_the_distribution_of_equation_2(r):
    n = 40_000
    score = torch.full((1, 1, 1, n), r)
    mask = parts_of(scored(r).train(), torch.ones_like(score)).mask.flatten()
    wanted = literal_mask(score.double(), 0.1, *torch.rand(2, 1, 1, 1, n, dtype=torch.float64)).flatten()
    # float32 rounds what is within 6e-8 of one to one; the tails beyond 1e-6 are compared by their weight
    ours, theirs = (values.double().clamp(1e-6, 1 - 1e-6).numpy() for values in (mask, wanted))
    assert stats.ks_2samp(ours, theirs).pvalue > 0.01
    probability = 1 / (1 + torch.exp(torch.tensor(-r))).item()
    error = 4 * (probability * (1 - probability) / n) ** 0.5
    assert (mask > 0.5).float().mean().item() == pytest.approx(probability, abs=error)
    mean = {0.0: 0.5, 0.5: 0.6216, 1.0: wanted.mean().item(), 2.0: 0.8800}[r]
    assert mask.mean().item() == pytest.approx(mean, abs=2 * error)
    soft = {0.0: 0.226, 0.5: None, 1.0: 0.180, 2.0: 0.098}[r]
    if soft is not None:
        share = ((mask > 0.01) & (mask < 0.99)).float().mean().item()
        assert share == pytest.approx(soft, abs=4 * (soft * (1 - soft) / n) ** 0.5 + 5e-4)


def test_the_noise_is_logistic_and_finite(monkeypatch):
    noise = logistic_noise(torch.empty(20_000))
    assert stats.kstest(noise.numpy(), "logistic").pvalue > 0.01
    for dtype in (torch.float32, torch.float64):
        score = torch.zeros(4, dtype=dtype)
        monkeypatch.setattr(torch, "rand_like", lambda like, **_: torch.tensor([0.0, 1e-30, 1 - 1e-8, 1.0]).to(like))
        assert logistic_noise(score).isfinite().all()
        assert logistic_noise(score).dtype == dtype


def test_each_unit_and_sample_has_its_own_draw():
    mask = parts_of(scored(0.0, tau=1.0).train(), torch.zeros(4, 1, 5, 5)).mask
    assert len(mask.unique()) == mask.numel()


def test_the_parts_are_the_papers(fsr, features):
    parts = parts_of(fsr, features)
    assert isinstance(parts, Parts)
    assert parts._fields == FIELDS
    m, r = parts.mask, fsr.recalibration
    assert (m > 0.9).any()
    assert (m < 0.1).any()
    assert torch.equal(parts.score, fsr.separation(features))
    torch.testing.assert_close(parts.f_plus + parts.f_minus, features, atol=1e-6, rtol=0)
    torch.testing.assert_close(parts.f_plus, m * features)
    torch.testing.assert_close(parts.f_tilde_minus, parts.f_minus + (1 - m) * r((1 - m) * features))
    torch.testing.assert_close(parts.f_tilde, features + (1 - m) * r((1 - m) * features), atol=1e-5, rtol=1e-5)
    assert torch.equal(fsr(features).features, parts.f_tilde)


def test_auxiliary_logits_come_from_one_shared_head_on_pooled_parts(fsr, features):
    aux = fsr(features).aux
    assert set(aux) == {"p_plus", "p_minus", "p_tilde", *FIELDS}
    for name, part in (("p_plus", "f_plus"), ("p_minus", "f_minus"), ("p_tilde", "f_tilde_minus")):
        pooled = aux[part].sum((2, 3)) / 16
        wanted = pooled @ fsr.aux_head.weight.T + fsr.aux_head.bias
        torch.testing.assert_close(aux[name], wanted)


def test_the_head_does_not_run_when_nobody_reads_it(fsr, features):
    runs = []
    fsr.aux_head.register_forward_hook(lambda *_: runs.append(1))
    assert fsr(features, want_aux=False).aux == {}
    assert runs == []
    fsr(features)
    assert len(runs) == 3
    model = attach(TinyCNN(num_classes=4), {"block2": FSR}, (3, 8, 8), 4)
    model.defenses["block2"].aux_head.register_forward_hook(lambda *_: runs.append(1))
    x = torch.rand(2, 3, 8, 8)
    model(x)
    model.routed({"block2": Route(part="f_plus")})(x)
    assert len(runs) == 3
    model.forward_with_aux(x)
    assert len(runs) == 6


def test_without_recalibration_the_network_is_the_bare_backbone():
    backbone = TinyCNN(num_classes=4, batch_norm=True).eval()
    model = attach(copy.deepcopy(backbone), {"block1": FSR, "block2": FSR}, (3, 8, 8), 4)
    x = torch.rand(4, 3, 8, 8)
    for defense in model.defenses.values():
        nn.init.zeros_(defense.recalibration[-1].weight)
    torch.testing.assert_close(model.eval()(x), backbone(x), atol=1e-6, rtol=0)
    for defense in model.defenses.values():
        nn.init.ones_(defense.recalibration[-1].weight)
    assert not torch.allclose(model(x), backbone(x), atol=1e-3)


@pytest.mark.parametrize(
    ("channels", "classes", "wanted"),
    [
        (512, 10, 1_259_018), (512, 100, 1_305_188), (512, 200, 1_356_488),
        (640, 10, 1_555_210), (640, 100, 1_612_900), (640, 200, 1_677_000),
    ],
)  # fmt: skip
def test_parameter_counts_are_the_papers(channels, classes, wanted):
    with torch.device("meta"):
        defense = FSR(FeatureShape(channels, 4, 4), classes)
    assert sum(parameter.numel() for parameter in defense.parameters()) == wanted


@pytest.mark.parametrize(("rec_last", "extra", "last"), [("conv", 0, nn.Conv2d), ("conv_bn", 12, nn.BatchNorm2d)])
def test_the_last_block_of_recalibration_may_have_batch_norm(rec_last, extra, last):
    defense = FSR(SHAPE, 10, width=8, rec_last=rec_last)
    net = sum(parameter.numel() for parameter in defense.separation.parameters())
    assert net == 9 * 6 * 8 + 9 * 8 * 8 + 9 * 8 * 6 + 2 * 2 * 8
    assert sum(parameter.numel() for parameter in defense.recalibration.parameters()) == net + extra
    assert type(defense.recalibration[-1]) is last
    assert type(defense.separation[-1]) is nn.Conv2d
    assert defense.recalibration(torch.randn(4, 6, 4, 4)).min() < 0


def test_recalibration_read_literally_is_not_negative(features):
    defense = FSR(SHAPE, 10, width=8, rec_last="conv_bn_relu")
    repaired = defense.recalibration(features)
    assert repaired.min() == 0
    assert repaired.max() > 0


@pytest.mark.parametrize(("hidden", "wanted"), [(None, 6 * 10 + 10), (16, 6 * 16 + 16 + 16 * 10 + 10)])
def test_the_auxiliary_head_is_linear_or_the_papers_mlp(hidden, wanted, features):
    defense = FSR(SHAPE, 10, width=8, aux_hidden=hidden)
    assert sum(parameter.numel() for parameter in defense.aux_head.parameters()) == wanted
    assert defense(features).aux["p_tilde"].shape == (4, 10)
    pooled = torch.randn(2, 3, 6)
    sums = defense.aux_head(pooled[0]) + defense.aux_head(pooled[1])
    twice = defense.aux_head(pooled.sum(0)) + defense.aux_head(torch.zeros(3, 6))
    assert torch.allclose(sums, twice, atol=1e-5) == (hidden is None)


@pytest.mark.parametrize(
    ("noise", "in_training", "in_eval"), [("training", True, False), ("always", True, True), ("never", False, False)]
)
def test_when_noise_is_drawn(noise, in_training, in_eval):
    defense = scored(0.0, noise=noise)
    x = torch.ones(2, 1, 3, 3)
    for training, noisy in ((True, in_training), (False, in_eval)):
        defense.train(training)
        state = torch.get_rng_state()
        first, second = (parts_of(defense, x).mask for _ in range(2))
        assert torch.equal(first, second) != noisy
        assert torch.equal(torch.get_rng_state(), state) != noisy


def losses_of(defense, features, logits, y):
    adv = Forward(logits, {"layer4": defense(features).aux})
    return defense.auxiliary_loss(adv, y, "layer4", clean=None, criterion=lambda *_: {})


def test_losses_are_equations_3_and_4(fsr, features):
    fsr.lambda_sep, fsr.lambda_rec = 0.7, 0.3
    logits, y = torch.randn(4, 10), torch.tensor([3, 1, 0, 9])
    logits[0, 3] = logits[1].max() + 9  # one right prediction; the others by chance
    found = losses_of(fsr, features, logits, y)
    aux = fsr(features).aux
    sep = rec = 0.0
    for index in range(4):
        wrong = max((k for k in range(10) if k != y[index]), key=lambda k: logits[index, k].item())
        sep -= aux["p_plus"].softmax(1)[index, y[index]].log().item()
        sep -= aux["p_minus"].softmax(1)[index, wrong].log().item()
        rec -= aux["p_tilde"].softmax(1)[index, y[index]].log().item()
    assert list(found) == ["sep", "rec"]
    assert found["sep"].item() == pytest.approx(0.7 * sep / 4, rel=1e-5)
    assert found["rec"].item() == pytest.approx(0.3 * rec / 4, rel=1e-5)


def test_the_wrong_class_is_that_of_the_final_logits_and_takes_no_gradient(fsr, features):
    logits = torch.zeros(4, 10, requires_grad=True)
    found = losses_of(fsr, features, logits + torch.eye(10)[:4], torch.tensor([0, 1, 2, 3]))
    assert torch.autograd.grad(found["sep"], logits, allow_unused=True) == (None,)


def test_a_fresh_network_loses_four_times_log_k():
    model = attach(TinyCNN(num_classes=10, width=32), {"block2": FSR}, (3, 8, 8), 10).eval()
    x, y = torch.rand(32, 3, 8, 8), torch.arange(32) % 10
    out = model.forward_with_aux(x, y)
    total = functional.cross_entropy(out.logits, y)
    total = total + sum(model.auxiliary_losses(out, y, criterion=lambda *_: {}).values())
    assert total.item() == pytest.approx(9.21, abs=0.15)


def gradient(loss, parameters):
    return [g is not None and bool(g.any()) for g in torch.autograd.grad(loss, parameters, allow_unused=True)]


@pytest.mark.parametrize(
    ("name", "reached"),
    [
        ("p_plus", {"separation", "aux_head", "features"}),
        ("p_minus", {"separation", "aux_head", "features"}),
        ("p_tilde", {"separation", "recalibration", "aux_head", "features"}),
        (None, {"separation", "recalibration", "features"}),
    ],
)
def test_what_each_output_trains(name, reached, features):
    defense = FSR(SHAPE, 10, width=8).train()
    x = features.requires_grad_()
    out = defense(x)
    value = out.features if name is None else out.aux[name]
    loss = (value * torch.randn_like(value)).sum()
    owners = {"features": [x]} | {key: list(net.parameters()) for key, net in defense.named_children()}
    names = [key for key, parameters in owners.items() for _ in parameters]
    found = gradient(loss, [parameter for parameters in owners.values() for parameter in parameters])
    assert {key for key, reaches in zip(names, found, strict=True) if reaches} == reached
    assert all(reaches == (key in reached) for key, reaches in zip(names, found, strict=True))


@pytest.mark.parametrize("part", ["f", "f_plus", "f_minus", "f_tilde_minus", "f_tilde", "f_plus_r"])
def test_a_route_passes_on_the_part_it_names(part, fsr, features):
    parts = parts_of(fsr, features)
    wanted = {"f": features, "f_plus_r": features + fsr.recalibration(features)} | parts._asdict()
    assert torch.equal(fsr(features, route=Route(part=part)).features, wanted[part])
    if part not in ("f", "f_tilde"):
        assert not torch.allclose(wanted[part], features)


def test_a_rescaled_part_has_the_direction_of_the_part_and_the_size_of_the_feature(fsr, features):
    features[1] = 0  # of nothing there is no part
    part = parts_of(fsr, features).f_minus
    found = fsr(features, route=Route(part="f_minus", rescaled=True)).features
    for own, scaled, whole in zip(part.flatten(1), found.flatten(1), features.flatten(1), strict=True):
        torch.testing.assert_close(scaled.norm(), whole.norm())
        torch.testing.assert_close(scaled * own.norm(), own * whole.norm())
    assert not found[1].any()
    whole = Route(part="f_minus", rescaled=True, mask=torch.ones(1, 1, 1, 1))  # f- is nothing where f+ is everything
    assert not fsr(features, route=whole).features.any()


def test_a_route_moves_the_mask_through_the_whole_module(fsr, features):
    given = (torch.rand(4, 6, 4, 4) > 0.5).float()
    out = fsr(features, route=Route(mask=given))
    repaired = fsr.recalibration((1 - given) * features)
    torch.testing.assert_close(out.features, features + (1 - given) * repaired)
    warm = parts_of(fsr, features, Route(tau=2.0))
    torch.testing.assert_close(warm.mask, torch.sigmoid(warm.score / 2))
    surrogate = fsr(features, route=Route(backward_tau=1.0)).features
    torch.testing.assert_close(surrogate, fsr(features).features, atol=1e-5, rtol=1e-5)


def test_a_backward_tau_like_the_modules_own_is_no_change(fsr, features):
    x = features.requires_grad_()
    plain, routed = (fsr.eval()(x, route=way).features for way in (None, Route(backward_tau=fsr.tau)))
    assert torch.equal(routed, plain)
    assert torch.equal(*(torch.autograd.grad(each.square().sum(), x)[0] for each in (routed, plain)))


def test_a_stopped_mask_cuts_the_separation_net_off(fsr, features):
    parameters = list(fsr.separation.parameters())
    for route, reaches in ((Route(), True), (Route(mask_gradient="stop"), False)):
        loss = fsr(features, route=route).features.square().sum()
        assert any(gradient(loss, parameters)) == reaches


def test_all_routes_are_declared(fsr, features):
    mask = torch.ones(4, 6, 4, 4)
    ways = [Route(part=part) for part in ("f", "f_plus", "f_minus", "f_tilde_minus", "f_tilde", "f_plus_r")]
    ways += [Route(tau=1.0), Route(backward_tau=1.0), Route(mask=mask), Route(rescaled=True)]
    ways += [Route(mask_gradient=rule) for rule in ("exact", "stop", "straight_through")]
    assert fsr.routes == FSR.routes
    assert not FSR.routes & {"through", "relu"}  # nothing is detached, and nothing stands in a ReLU's place
    for way in ways:
        assert way.uses <= FSR.routes
        assert fsr(features, route=way).features.isfinite().all()


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (16, 16)])
def test_any_height_and_width_will_do(size, fsr):
    assert fsr(torch.randn(2, 6, *size)).features.shape == (2, 6, *size)


def test_another_number_of_channels_is_refused(fsr):
    with pytest.raises(ValueError, match="expected features of 6 channels, got 5"):
        fsr(torch.randn(2, 5, 4, 4))


@pytest.mark.parametrize("training", [True, False])
def test_masks_and_auxiliary_logits_are_float32_under_autocast(training, fsr, features):
    fsr.train(training)
    with torch.autocast("cpu", torch.bfloat16):
        out = fsr(features.bfloat16())
    assert out.features.dtype == torch.bfloat16
    assert {out.aux[key].dtype for key in ("score", "mask", "p_plus", "p_minus", "p_tilde")} == {torch.float32}
    assert all(value.isfinite().all() for value in out.aux.values())


def test_saturated_scores_give_finite_gradients():
    defense = FSR(FeatureShape(1, 1, 1), 10, width=4).train()
    defense.separation = nn.Identity()
    score = torch.tensor([-1e4, -30.0, 30.0, 1e4]).reshape(4, 1, 1, 1).requires_grad_()
    out = defense(score)
    sum(value.sum() for value in (out.features, *out.aux.values())).backward()
    assert score.grad.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": 0}, "expected tau above 0, got 0"),
        ({"tau": float("nan")}, "expected tau above 0, got nan"),
        ({"width": 0}, "expected width to be a whole number of at least 1, got 0"),
        ({"tau": float("inf")}, "expected tau above 0, got inf"),
        ({"lambda_rec": float("inf")}, "expected lambda_rec of at least 0, got inf"),
        ({"lambda_sep": -1}, "expected lambda_sep of at least 0, got -1"),
        ({"lambda_rec": -0.5}, "expected lambda_rec of at least 0, got -0.5"),
        ({"noise": "allways"}, r"no FSR noise named 'allways'; close names: \['always'"),
        ({"rec_last": "conv_bn_rel"}, r"no FSR rec_last named 'conv_bn_rel'; close names: \['conv_bn_relu'"),
        ({"aux_hidden": 0}, "expected aux_hidden to be a whole number of at least 1, got 0"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        FSR(SHAPE, 10, **options)
    assert "\n" not in str(caught.value)


def test_an_option_that_does_not_exist_is_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'temperature'"):
        FSR(SHAPE, 10, temperature=0.1)
