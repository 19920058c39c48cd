"""FSR's ablations against their definitions, transcribed, and what each of its terms trains."""

import copy

import pytest
import torch
from torch import nn

from fsr_lab.core.crafting import crafting
from fsr_lab.core.route import Route
from fsr_lab.core.types import FeatureShape, Forward
from fsr_lab.defense.fsr import FSR
from fsr_lab.model.defended import attach
from fsr_lab.model.tiny_cnn import TinyCNN

SHAPE = FeatureShape(6, 4, 4)
UNLEARNT = ("random", "fixed_random", "magnitude", "inverse_magnitude", "attribution", "zeros")
MASKED = {"mask", "f_plus", "f_minus", "f_tilde"}
LOG3 = torch.tensor(3.0).log()
"""The quartiles of the logistic distribution lie at -log 3 and log 3."""


def built(**options):
    """Return FSR in eval mode, its BatchNorm statistics and scores not those of a fresh net."""
    defense = FSR(SHAPE, 10, width=8, **options)
    y = torch.arange(8)
    for _ in range(30):
        defense(3 * torch.randn(8, 6, 4, 4), y)
    if defense.separation is not None:
        nn.init.normal_(defense.separation[-1].weight, std=0.3)
    return defense.eval()


@pytest.fixture
def features():
    return torch.randn(4, 6, 4, 4)


@pytest.fixture
def y():
    return torch.tensor([3, 1, 0, 9])


def head_of(defense, part):
    return (part.sum((2, 3)) / 16) @ defense.aux_head.weight.T + defense.aux_head.bias


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_without_separation_f_plus_r_of_f_goes_on_and_must_tell_the_class(features, y):
    defense = built(use_sep=False, lambda_rec=0.3)
    assert defense.separation is None
    out = defense(features)
    wanted = features + defense.recalibration(features)
    assert torch.equal(out.features, wanted)
    assert set(out.aux) == {"p_tilde", "f_tilde"}
    torch.testing.assert_close(out.aux["p_tilde"], head_of(defense, wanted))
    losses = losses_of(defense, out.aux, torch.randn(4, 10), y)
    rec = -sum(out.aux["p_tilde"].softmax(1)[i, y[i]].log().item() for i in range(4)) / 4
    assert list(losses) == ["rec"]
    assert losses["rec"].item() == pytest.approx(0.3 * rec, rel=1e-5)


def test_without_recalibration_the_robust_part_goes_on(features, y):
    defense = built(use_rec=False, lambda_sep=0.7)
    assert defense.recalibration is None
    out = defense(features)
    mask = torch.sigmoid(defense.separation(features) / 0.1)
    torch.testing.assert_close(out.features, mask * features)
    assert set(out.aux) == {"p_plus", "p_minus", "score"} | MASKED
    torch.testing.assert_close(out.aux["p_plus"], head_of(defense, mask * features))
    torch.testing.assert_close(out.aux["p_minus"], head_of(defense, (1 - mask) * features))
    logits = torch.randn(4, 10)
    wrong = [max((k for k in range(10) if k != y[i]), key=lambda k, i=i: logits[i, k].item()) for i in range(4)]
    terms = [out.aux["p_plus"].softmax(1)[i, y[i]] * out.aux["p_minus"].softmax(1)[i, wrong[i]] for i in range(4)]
    losses = losses_of(defense, out.aux, logits, y)
    assert list(losses) == ["sep"]
    assert losses["sep"].item() == pytest.approx(-0.7 * sum(term.log().item() for term in terms) / 4, rel=1e-5)


@pytest.mark.parametrize(("options", "extra"), [({"use_sep": False}, 632_074), ({"use_rec": False}, 632_074)])
def test_parameter_counts_of_table_6(options, extra):
    with torch.device("meta"):
        assert count(FSR(FeatureShape(512, 4, 4), 10, **options)) == extra


def test_the_paper_read_literally_on_resnet18():
    with torch.device("meta"):
        defense = FSR(FeatureShape(512, 4, 4), 10, rec_last="conv_bn_relu", aux_hidden=64)
    assert count(defense) == 2 * 626_944 + 2 * 512 + 512 * 64 + 64 + 64 * 10 + 10
    assert f"{(11_173_962 + count(defense)) / 1e6:.2f}" == "12.46"


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mask", UNLEARNT)
def test_a_mask_that_nothing_is_learnt_for_has_no_separation_net(mask, training, features, y):
    defense = built(mask=mask)
    assert defense.separation is None
    assert {name.partition(".")[0] for name, _ in defense.named_parameters()} == {"recalibration", "aux_head"}
    out = copy.deepcopy(defense).train(training)(features, y)
    assert set(out.aux) == {"p_plus", "p_minus", "p_tilde", "f_tilde_minus"} | MASKED
    m = out.aux["mask"]
    assert m.shape == features.shape
    assert not m.requires_grad
    repaired = defense.train(training).recalibration((1 - m) * features)
    torch.testing.assert_close(out.features, features + (1 - m) * repaired, atol=1e-5, rtol=1e-5)
    density = m.mean().item()
    assert density == pytest.approx({"zeros": 0}.get(mask, 0.5), abs=0.25 if mask == "attribution" else 0.1)


def test_with_a_mask_of_ones_the_network_is_unchanged_and_its_feature_tells_the_class(features, y):
    defense = built(mask="ones", use_rec=False, wrong="none")
    assert {name.partition(".")[0] for name, _ in defense.named_parameters()} == {"aux_head"}
    out = defense.train()(features, y)
    assert torch.equal(out.features, features)
    losses = losses_of(defense, out.aux, torch.randn(4, 10), y)
    wanted = -sum(head_of(defense, features).softmax(1)[i, y[i]].log().item() for i in range(4)) / 4
    assert {name: value.item() for name, value in losses.items()} == {"sep": pytest.approx(wanted, rel=1e-5)}


def test_a_random_mask_is_drawn_in_training_and_one_half_otherwise(features):
    defense = built(mask="random")
    assert (defense.training_noise, defense.eval_noise) == (True, False)
    assert defense(features).aux["mask"].unique().tolist() == [0.5]
    first, second = (defense.train()(features).aux["mask"] for _ in range(2))
    assert first.unique().tolist() == [0, 1]
    assert not torch.equal(first, second)
    always = built(mask="random", noise="always")
    assert always.eval_noise
    assert always(features).aux["mask"].unique().tolist() == [0, 1]


def test_a_fixed_random_mask_is_per_channel_and_part_of_the_checkpoint():
    one, other = (FSR(FeatureShape(64, 4, 4), 10, mask="fixed_random") for _ in range(2))
    masks = [d.eval()(torch.randn(2, 64, 4, 4)).aux["mask"] for d in (one, other)]
    assert not torch.equal(*masks)
    assert (masks[0] == masks[0][:1, :, :1, :1]).all()
    other.load_state_dict(one.state_dict())
    assert torch.equal(other(torch.randn(2, 64, 4, 4)).aux["mask"], masks[0])
    assert "fixed_mask" not in FSR(SHAPE, 10).state_dict()


def test_attribution_follows_the_label_in_training_and_the_prediction_otherwise(features, y):
    defense = built(mask="attribution")
    weight = defense.aux_head.weight
    predicted = head_of(defense, features).argmax(1)
    for training, given, label in ((True, y, y), (True, None, predicted), (False, y, predicted)):
        mask = defense.train(training)(features, given).aux["mask"]
        assert torch.equal(mask, (weight[label] > 0).float()[:, :, None, None].expand_as(features))
    assert not torch.equal(predicted, y)
    with crafting(defense.train(), noise=True):  # expectation over noise reads no labels
        assert torch.equal(defense(features, y).aux["mask"][:, :, 0, 0], (weight[predicted] > 0).float())


@pytest.mark.parametrize(("granularity", "axes"), [("channel", (2, 3)), ("spatial", (1,))])
@pytest.mark.parametrize("mask", ["gumbel", "gumbel_literal", "random", "magnitude"])
def test_a_coarse_mask_is_one_decision_along_its_axes(mask, granularity, axes, features):
    defense = built(mask=mask, granularity=granularity)
    for training in (True, False):
        aux = defense.train(training)(features).aux
        assert aux["mask"].shape == features.shape
        assert (aux["mask"].amax(axes) == aux["mask"].amin(axes)).all()
        torch.testing.assert_close(aux["f_plus"], aux["mask"] * features)
    if mask == "gumbel":
        score = defense.separation(features).mean(axes, keepdim=True).expand_as(features)
        torch.testing.assert_close(aux["score"], score)
        torch.testing.assert_close(aux["mask"], torch.sigmoid(score / 0.1))


@pytest.mark.parametrize(
    ("eval_mask", "wanted"),
    [
        ("own", lambda r: torch.sigmoid(r / 0.1)),
        ("tempered", lambda r: torch.sigmoid(r / 0.1)),
        ("sigmoid", torch.sigmoid),
        ("hard", lambda r: (r > 0).float()),
        ("mc", lambda r: (torch.sigmoid((r - LOG3) / 0.1) + torch.sigmoid((r + LOG3) / 0.1)) / 2),
    ],
)
def test_the_mask_at_evaluation_is_its_own_choice(eval_mask, wanted, features):
    defense = built(eval_mask=eval_mask, mc_samples=2)
    r = defense.separation(features)
    torch.testing.assert_close(defense(features).aux["mask"], wanted(r))
    plain, defense = built().train(), defense.train()
    defense.load_state_dict(plain.state_dict())
    masks = []
    for net in (plain, defense):
        torch.manual_seed(1)
        masks.append(net(features).aux["mask"])
    assert torch.equal(*masks)  # training does not change


def test_without_noise_training_still_uses_the_training_mask(features):
    defense = built(noise="never", eval_mask="hard").train()
    mask = defense(features).aux["mask"]
    assert len(mask.unique()) > 2
    assert not defense.training_noise


@pytest.mark.parametrize("mask", ["sigmoid", "tempered", "hard_st", "magnitude", "attribution"])
def test_masks_without_noise_declare_none(mask):
    assert not FSR(SHAPE, 10, mask=mask).training_noise
    assert not FSR(SHAPE, 10, use_sep=False).training_noise
    assert FSR(SHAPE, 10, mask="gumbel_st").training_noise


def losses_of(defense, aux, logits, y, *, clean=None, criterion=lambda *_: {}):
    return defense.auxiliary_loss(Forward(logits, {"at": aux}), y, "at", clean=clean, criterion=criterion)


def nll(logits, label):
    """Return -mean log p_label, one sample at a time."""
    return -sum(logits[i].softmax(0)[label[i]].log().item() for i in range(len(logits))) / len(logits)


@pytest.mark.parametrize(
    ("wrong", "by", "pick"), [("final", "z", max), ("aux", "p_plus", max), ("least_likely", "z", min)]
)
def test_which_wrong_class_the_non_robust_part_must_tell(wrong, by, pick, features, y):
    defense = built(wrong=wrong)
    aux, z = defense(features).aux, torch.randn(4, 10)
    z[torch.arange(4), y] += torch.tensor([9.0, -9.0, 9.0, -9.0])  # the true class is neither answer
    judged = z if by == "z" else aux["p_plus"]
    label = [pick((k for k in range(10) if k != y[i]), key=lambda k, i=i: judged[i, k].item()) for i in range(4)]
    found = losses_of(defense, aux, z, y)["sep"].item()
    assert found == pytest.approx(nll(aux["p_plus"], y) + nll(aux["p_minus"], label), rel=1e-5)


def test_a_uniform_target_tells_no_class(features, y):
    defense = built(wrong="uniform")
    aux = defense(features).aux
    uniform = sum(nll(aux["p_minus"], [k] * 4) for k in range(10)) / 10
    found = losses_of(defense, aux, torch.randn(4, 10), y)["sep"].item()
    assert found == pytest.approx(nll(aux["p_plus"], y) + uniform, rel=1e-5)


def test_no_wrong_class_drops_its_term(features, y):
    defense = built(wrong="none")
    aux = defense(features).aux
    assert losses_of(defense, aux, torch.randn(4, 10), y)["sep"].item() == pytest.approx(
        nll(aux["p_plus"], y), rel=1e-5
    )


def test_a_random_wrong_class_is_any_but_the_true_one():
    defense = built(wrong="random")
    n, y = 4000, torch.tensor([2]).repeat(4000)
    costs = torch.tensor([[1.0, 2.0, 50.0, 4.0, 8.0, 0.0, 0.0, 0.0, 0.0, 0.0]]).repeat(n, 1)
    seen = set()
    for _ in range(60):
        aux = {"p_plus": torch.zeros(1, 10), "p_minus": costs[:1], "p_tilde": torch.zeros(1, 10)}
        loss = losses_of(defense, aux, torch.randn(1, 10), y[:1])["sep"].item() - torch.tensor(10.0).log().item()
        seen.add(round(50 - loss))
    assert seen == {0, 1, 2, 4, 8}  # never 50, the true class
    aux = {"p_plus": torch.zeros(n, 10), "p_minus": costs, "p_tilde": torch.zeros(n, 10)}
    mean = 50 - (losses_of(defense, aux, torch.randn(n, 10), y)["sep"].item() - torch.tensor(10.0).log().item())
    assert mean == pytest.approx(15 / 9, abs=4 * 2.6 / n**0.5)  # uniform over the nine


def two_forwards(defense):
    torch.manual_seed(2)
    forwards = []
    for _ in range(2):
        forwards.append(Forward(torch.randn(4, 10), {"at": defense(torch.randn(4, 6, 4, 4)).aux}))
    return forwards


def test_the_terms_may_be_computed_on_clean_images_or_on_both(y):
    found = {}
    for loss_on in ("adv", "clean", "both"):
        defense = built(loss_on=loss_on)
        torch.manual_seed(3)
        for parameter in defense.parameters():
            nn.init.normal_(parameter, std=0.2)
        defense.eval()
        adv, clean = two_forwards(defense)
        found[loss_on] = defense.auxiliary_loss(adv, y, "at", clean=clean, criterion=lambda *_: {})
        assert defense.needs_clean == (loss_on != "adv")
        read = clean if loss_on == "clean" else adv
        aux, z = read.aux["at"], read.logits
        wrong = [max((k for k in range(10) if k != y[i]), key=lambda k, i=i, z=z: z[i, k].item()) for i in range(4)]
        if loss_on != "both":  # y' is of the same forward
            assert found[loss_on]["sep"].item() == pytest.approx(
                nll(aux["p_plus"], y) + nll(aux["p_minus"], wrong), rel=1e-5
            )
            assert found[loss_on]["rec"].item() == pytest.approx(nll(aux["p_tilde"], y), rel=1e-5)
        else:
            with pytest.raises(ValueError, match="loss_on=both reads clean images, and there are none"):
                defense.auxiliary_loss(adv, y, "at", clean=None, criterion=lambda *_: {})


def test_both_is_the_mean_of_the_two(y):
    defense = built(loss_on="both")
    adv, clean = two_forwards(defense)
    both = defense.auxiliary_loss(adv, y, "at", clean=clean, criterion=lambda *_: {})
    defense.loss_on = "adv"
    alone = [defense.auxiliary_loss(read, y, "at", clean=None, criterion=lambda *_: {}) for read in (adv, clean)]
    for name, value in both.items():
        torch.testing.assert_close(value, (alone[0][name] + alone[1][name]) / 2)
    assert list(both) == ["sep", "rec"]


@pytest.mark.parametrize("with_clean", [True, False])
def test_auxiliary_heads_may_follow_the_strategys_criterion(with_clean, y):
    defense = built(heads="criterion", lambda_sep=0.5, lambda_rec=0.25)
    assert not defense.needs_clean
    adv, clean = two_forwards(defense)
    asked = []

    def criterion(adv_logits, clean_logits, label):
        asked.append((adv_logits, clean_logits, label))
        return {"a": torch.tensor(float(len(asked))), "b": torch.tensor(10.0)}

    found = defense.auxiliary_loss(adv, y, "at", clean=clean if with_clean else None, criterion=criterion)
    masked = adv.logits.clone()
    masked[torch.arange(4), y] = -torch.inf
    for (adv_logits, clean_logits, label), key, wanted in zip(
        asked, ("p_plus", "p_minus", "p_tilde"), (y, masked.argmax(1), y), strict=True
    ):
        assert adv_logits is adv.aux["at"][key]
        assert clean_logits is (clean.aux["at"][key] if with_clean else None)
        assert torch.equal(label, wanted)
    values = {name: value.item() for name, value in found.items()}
    assert values == {"sep": 0.5 * (11 + 12), "rec": 0.25 * 13}


S, R, H, F = "separation", "recalibration", "aux_head", "features"


@pytest.mark.parametrize(
    ("options", "term", "reached"),
    [
        ({}, "sep", {S, H, F}),
        ({}, "rec", {S, R, H, F}),
        ({}, "features", {S, R, F}),
        ({"use_sep": False}, "rec", {R, H, F}),
        ({"use_sep": False}, "features", {R, F}),
        ({"use_rec": False}, "sep", {S, H, F}),
        ({"use_rec": False}, "features", {S, F}),
        ({"mask": "gumbel_literal"}, "sep", {S, H, F}),
        ({"mask": "hard_st"}, "rec", {S, R, H, F}),
        ({"mask": "gumbel_st"}, "features", {S, R, F}),
        ({"granularity": "channel"}, "rec", {S, R, H, F}),
        ({"mask": "random"}, "sep", {H, F}),
        ({"mask": "random"}, "rec", {R, H, F}),
        ({"mask": "magnitude"}, "rec", {R, H, F}),
        ({"mask": "attribution"}, "sep", {H, F}),
        ({"mask": "attribution"}, "features", {R, F}),
        ({"mask": "zeros"}, "rec", {R, H, F}),
        ({"wrong": "uniform"}, "sep", {S, H, F}),
        ({"wrong": "none"}, "sep", {S, H, F}),
        ({"detach_f_for_aux": True}, "sep", {S, H}),
        ({"detach_f_for_aux": True}, "rec", {S, R, H}),
        ({"detach_f_for_aux": True}, "features", {S, R, F}),
        ({"detach_f_for_aux": True, "use_sep": False}, "rec", {R, H}),
        ({"detach_mask_in_rec": True}, "sep", {S, H, F}),
        ({"detach_mask_in_rec": True}, "rec", {R, H, F}),
        ({"detach_mask_in_rec": True}, "features", {S, R, F}),
        ({"detach_mask_in_rec": True, "detach_f_for_aux": True}, "rec", {R, H}),
    ],
)
def test_what_each_term_trains(options, term, reached, features, y):
    defense = FSR(SHAPE, 10, width=8, **options).train()
    x = features.requires_grad_()
    out = defense(x, y)
    logits = torch.randn(4, 10, requires_grad=True)
    terms = losses_of(defense, out.aux, logits, y) | {"features": (out.features * torch.randn(4, 6, 4, 4)).sum()}
    owners = {F: [x]} | {name: list(net.parameters()) for name, net in defense.named_children()}
    for name, parameters in owners.items():
        gradients = torch.autograd.grad(terms[term], parameters, allow_unused=True, retain_graph=True)
        assert {g is not None and bool(g.any()) for g in gradients} == {name in reached}, name
    assert torch.autograd.grad(terms["features"] + terms[term], logits, allow_unused=True) == (None,)


@pytest.mark.parametrize("mask", ["gumbel", "gumbel_literal", "random"])
@pytest.mark.parametrize("use_sep", [True, False])
def test_stopped_gradients_change_no_value_and_no_statistic(mask, use_sep, features, y):
    learnt = use_sep and mask != "random"
    plain = FSR(SHAPE, 10, width=8, mask=mask) if use_sep else FSR(SHAPE, 10, width=8, use_sep=False)
    stopped = copy.deepcopy(plain)
    stopped.detach_f_for_aux, stopped.detach_mask_in_rec = True, learnt
    outs = []
    for defense in (plain, stopped):
        torch.manual_seed(4)
        outs.append(defense.train()(features, y))
    assert torch.equal(outs[0].features, outs[1].features)
    for key, value in outs[0].aux.items():
        torch.testing.assert_close(outs[1].aux[key], value, atol=1e-6, rtol=1e-5)
    for (key, one), other in zip(plain.state_dict().items(), stopped.state_dict().values(), strict=True):
        assert torch.equal(one, other), key


def test_in_eval_mode_an_attack_on_the_auxiliary_logits_keeps_its_gradient(features):
    defense = built(detach_f_for_aux=True, detach_mask_in_rec=True)
    x = features.requires_grad_()
    for key in ("p_plus", "p_minus", "p_tilde"):
        (gradient,) = torch.autograd.grad(defense(x).aux[key].sum(), x)
        assert gradient.any()


PARTS = {"f_plus", "f_minus", "f_tilde_minus", "f_plus_r"}
RULES = {"tau", "backward_tau", "stop", "straight_through"}


@pytest.mark.parametrize(
    ("options", "lacking"),
    [
        ({}, set()),
        ({"use_sep": False}, {"f_plus", "f_minus", "f_tilde_minus", "mask"} | RULES),
        ({"use_rec": False}, {"f_tilde_minus", "f_plus_r"}),
        ({"mask": "sigmoid"}, {"tau"}),
        ({"mask": "hard_st"}, {"tau"}),
        ({"eval_mask": "hard"}, {"tau"}),
        ({"mask": "sigmoid", "eval_mask": "tempered"}, set()),
        ({"eval_mask": "mc"}, set()),
        *(({"mask": mask}, RULES) for mask in UNLEARNT),
    ],
)
def test_a_route_that_an_ablation_does_not_have_is_refused(options, lacking, features):
    model = attach(TinyCNN(num_classes=4), {"block2": lambda **told: FSR(**told, **options)}, (3, 8, 8), 4).eval()
    (defense,) = model.defenses.values()
    ways = {part: Route(part=part) for part in {"f", "f_tilde"} | PARTS}
    ways |= {
        "tau": Route(tau=1.0),
        "backward_tau": Route(backward_tau=1.0),
        "mask": Route(mask=torch.tensor([[[[0.25]]]])),
    }
    ways |= {rule: Route(mask_gradient=rule) for rule in ("stop", "straight_through")}
    x = torch.rand(2, 3, 8, 8)
    for name, way in ways.items():
        if name in lacking:
            with pytest.raises(ValueError, match=rf"FSR at 'block2' has no route \['{name}'\]; it knows") as caught:
                model.routed({"block2": way})
            assert "\n" not in str(caught.value)
        else:
            assert model.routed({"block2": way})(x).isfinite().all()
    for part in lacking & PARTS:
        with pytest.raises(ValueError, match=f"this FSR has no part '{part}'"):
            defense(torch.rand(2, 16, 2, 2), route=Route(part=part))
    assert FSR.routes >= defense.routes


@pytest.mark.parametrize("options", [{"granularity": "channel"}, {"mask": "magnitude"}, {"eval_mask": "mc"}])
def test_a_given_mask_stands_in_for_any(options, features):
    defense = built(**options)
    given = (torch.rand(4, 6, 4, 4) > 0.5).float()
    out = defense(features, route=Route(mask=given))
    assert torch.equal(out.aux["mask"], given)
    torch.testing.assert_close(out.features, features + (1 - given) * defense.recalibration((1 - given) * features))


@pytest.mark.parametrize("options", [{"mask": "gumbel_literal"}, {"mask": "magnitude"}, {"granularity": "spatial"}])
def test_masks_are_float32_under_autocast(options, features, y):
    defense = built(**options).train()
    with torch.autocast("cpu", torch.bfloat16):
        out = defense(features.bfloat16(), y)
    assert out.features.dtype == torch.bfloat16
    assert out.aux["mask"].dtype == torch.float32
    assert all(value.isfinite().all() for value in out.aux.values())


def test_the_defence_is_initialised_as_its_backbone():
    backbone = TinyCNN(num_classes=4)

    def initialize(module):
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 0.125)

    backbone.initialize = initialize
    (defense,) = attach(backbone, {"block2": FSR}, (3, 8, 8), 4).defenses.values()
    convs = [module for module in defense.modules() if isinstance(module, nn.Conv2d)]
    assert len(convs) == 6
    assert all((conv.weight == 0.125).all() for conv in convs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": "gumble"}, r"no FSR mask named 'gumble'; close names: \['gumbel'"),
        ({"eval_mask": "hrd"}, r"no FSR eval_mask named 'hrd'; close names: \['hard'"),
        ({"granularity": "chanel"}, r"no FSR granularity named 'chanel'; close names: \['channel'"),
        ({"wrong": "least"}, r"no FSR wrong named 'least'; close names: \['least_likely'"),
        ({"loss_on": "cleen"}, r"no FSR loss_on named 'cleen'; close names: \['clean'"),
        ({"heads": "criterium"}, r"no FSR heads named 'criterium'; close names: \['criterion'"),
        ({"mc_samples": 0}, "expected mc_samples to be a whole number of at least 1, got 0"),
        ({"use_sep": False, "use_rec": False}, "is the network; use defense=none"),
        ({"use_sep": False, "mask": "sigmoid"}, "use_sep=false leaves no mask and no y'"),
        ({"use_sep": False, "wrong": "none"}, "use_sep=false leaves no mask and no y'"),
        ({"use_sep": False, "granularity": "channel"}, "use_sep=false leaves no mask and no y'"),
        ({"mask": "ones"}, "mask=ones leaves nothing to recalibrate; set use_rec=false"),
        ({"mask": "zeros", "use_rec": False}, "mask=zeros without Recalibration passes nothing on"),
        ({"mask": "magnitude", "eval_mask": "hard"}, "eval_mask=hard needs a learnt mask"),
        ({"mask": "attribution", "granularity": "spatial"}, "mask=attribution has a granularity of its own"),
        ({"mask": "sigmoid", "noise": "always"}, "noise=always needs a mask that draws"),
        ({"use_sep": False, "noise": "always"}, "noise=always needs a mask that draws"),
        ({"eval_mask": "mc", "noise": "always"}, "which leaves eval_mask nothing to do"),
        ({"heads": "criterion", "loss_on": "both"}, "heads=criterion reads what the criterion reads"),
        ({"heads": "criterion", "wrong": "uniform"}, "heads=criterion reads what the criterion reads"),
        ({"detach_mask_in_rec": True, "use_rec": False}, "detach_mask_in_rec needs Recalibration and a learnt mask"),
        ({"detach_mask_in_rec": True, "mask": "random"}, "detach_mask_in_rec needs Recalibration and a learnt mask"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        FSR(SHAPE, 10, **options)
    assert "\n" not in str(caught.value)


def test_a_single_class_is_refused():
    with pytest.raises(ValueError, match="expected at least 2 classes, as FSR teaches f- a wrong one, got 1"):
        FSR(SHAPE, 1)
