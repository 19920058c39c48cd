"""Every strategy's loss against its equation, transcribed in float64 NumPy, and against worked examples."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from fsr_lab.core.threat import Threat
from fsr_lab.strategy.alp import ALP
from fsr_lab.strategy.at import AT
from fsr_lab.strategy.cat import CAT
from fsr_lab.strategy.fat import FAT
from fsr_lab.strategy.mart import MART
from fsr_lab.strategy.natural import Natural
from fsr_lab.strategy.s2o import S2O, soft_labels
from fsr_lab.strategy.trades import TRADES

Z = torch.tensor([[2.0, 1.0, 0.5, -1.0, 0.0]])
Z_ADV = torch.tensor([[1.0, 1.5, 0.0, 0.5, -0.5]])
Y = torch.tensor([1])


class Steps:
    """An attack that is never called, where only criteria are looked at."""

    steps = 3


@pytest.fixture
def logits():
    rng = np.random.default_rng(3)
    return 2 * rng.standard_normal((6, 5)), 2 * rng.standard_normal((6, 5)), rng.integers(5, size=6)


def tensors(clean, adv, y):
    return torch.from_numpy(adv), torch.from_numpy(clean), torch.from_numpy(y)


def ref_ce(z, y):
    return np.mean([-log_softmax(row)[k] for row, k in zip(z, y, strict=True)])


def ref_kl(clean, adv):
    p, q = softmax(clean, axis=1), softmax(adv, axis=1)
    return np.array([(pi * np.log(pi / qi)).sum() for pi, qi in zip(p, q, strict=True)])


def ref_bce(z, y):
    p = softmax(z, axis=1)
    values = []
    for row, k in zip(p, y, strict=True):
        wrong = max(value for j, value in enumerate(row) if j != k)
        values.append(-np.log(row[k]) - np.log(1.0001 - wrong + 1e-12))
    return np.mean(values)


def as_floats(terms):
    return {name: value.item() for name, value in terms.items()}


def test_the_worked_examples():
    assert sum(as_floats(TRADES(attack=Steps()).criterion(Z_ADV, Z, Y)).values()) == pytest.approx(3.320366, abs=1e-5)
    terms = as_floats(MART(attack=Steps()).criterion(Z_ADV, Z, Y))
    assert terms["bce"] == pytest.approx(1.148062, abs=1e-5)
    assert terms["kl"] == pytest.approx(5 * 0.230717, abs=1e-5)
    assert sum(terms.values()) == pytest.approx(2.301649, abs=1e-5)


def test_natural_and_at_are_cross_entropy(logits):
    clean, adv, y = logits
    for strategy in (Natural(), AT(attack=Steps())):
        assert as_floats(strategy.criterion(*tensors(clean, adv, y))) == pytest.approx({"ce": ref_ce(adv, y)})


@pytest.mark.parametrize("beta", [0.0, 1.0, 6.0])
def test_trades(logits, beta):
    clean, adv, y = logits
    found = as_floats(TRADES(attack=Steps(), beta=beta).criterion(*tensors(clean, adv, y)))
    assert found == pytest.approx({"ce": ref_ce(clean, y), "kl": beta * ref_kl(clean, adv).mean()})


def test_mart(logits):
    clean, adv, y = logits
    found = as_floats(MART(attack=Steps(), lambda_kl=2.5).criterion(*tensors(clean, adv, y)))
    doubt = 1.0000001 - softmax(clean, axis=1)[np.arange(6), y]
    assert found == pytest.approx({"bce": ref_bce(adv, y), "kl": 2.5 * (ref_kl(clean, adv) * doubt).mean()}, rel=1e-6)


def test_mart_weighs_auxiliary_logits_by_the_final_ones(logits):
    clean, adv, y = logits
    final = np.random.default_rng(9).standard_normal((6, 5))
    strategy = MART(attack=Steps())
    found = strategy.auxiliary_criterion(torch.from_numpy(final))(*tensors(clean, adv, y))
    doubt = 1.0000001 - softmax(final, axis=1)[np.arange(6), y]
    assert found["kl"].item() == pytest.approx(5 * (ref_kl(clean, adv) * doubt).mean(), rel=1e-6)
    assert found["bce"].item() == pytest.approx(ref_bce(adv, y))


def test_mart_takes_a_batch_of_one():
    assert MART(attack=Steps()).criterion(Z_ADV, Z, Y)["kl"].shape == ()


@pytest.mark.parametrize(
    ("options", "share", "pairing"),
    [
        ({}, (0.5, 0.5), lambda c, a: 0.5 * ((c - a) ** 2).mean()),
        ({"weight": 2.0}, (0.5, 0.5), lambda c, a: 2.0 * ((c - a) ** 2).mean()),
        ({"form": "adversarial"}, (1.0, 0.0), lambda c, a: ((c - a) ** 2).sum(1).mean()),
        ({"form": "adversarial", "weight": 3.0}, (1.0, 0.0), lambda c, a: 3.0 * ((c - a) ** 2).sum(1).mean()),
        ({"paired": "probs"}, (0.5, 0.5), lambda c, a: 0.5 * ((softmax(c, axis=1) - softmax(a, axis=1)) ** 2).mean()),
    ],
)
def test_alp(logits, options, share, pairing):
    clean, adv, y = logits
    found = as_floats(ALP(attack=Steps(), **options).criterion(*tensors(clean, adv, y)))
    ce = share[0] * ref_ce(adv, y) + share[1] * ref_ce(clean, y)
    assert found == pytest.approx({"ce": ce, "pairing": pairing(clean, adv)})


def test_s2o_soft_labels_of_the_worked_example():
    z = torch.tensor([[1.0, 0.0, -1.0], [0.0, 2.0, 1.0]])
    rows = soft_labels(z, torch.arange(3))
    wanted = [[0.2, 0.8, 0.0], [0.5333333, 0.2, 0.2666667], [0.8, 0.0, 0.2]]
    torch.testing.assert_close(rows, torch.tensor(wanted), atol=1e-6, rtol=0)


def test_s2o_soft_labels_are_finite_where_all_classes_go_together():
    rows = soft_labels(torch.ones(4, 3), torch.tensor([0, 2]))
    torch.testing.assert_close(rows, 0.2 * torch.eye(3)[[0, 2]])


def ref_soft_labels(z, y, diagonal):
    together = abs(sum(np.outer(row, row) for row in z))
    rows = []
    for k in range(z.shape[1]):
        row = -together[k]
        row = row - row.min()
        row[k] = 0
        row = (1 - diagonal) * row / row.sum()
        row[k] = diagonal
        rows.append(row)
    return np.array(rows)[y]


def ref_pull(z, y, diagonal):
    q, p = ref_soft_labels(z, y, diagonal), softmax(z, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(q > 0, q * np.log(q / p), 0).sum(1).mean()


@pytest.mark.parametrize(
    ("base", "weight", "classify"),
    [
        (AT(attack=Steps()), 0.05, lambda c, a, y: {"ce": 0.9 * ref_ce(a, y)}),
        (
            TRADES(attack=Steps()), 0.15,
            lambda c, a, y: {"ce": 0.7 * ref_ce(c, y), "kl": 6 * ref_kl(c, a).mean()},
        ),
        (
            MART(attack=Steps()), 0.15,
            lambda c, a, y: {
                "bce": 0.7 * ref_bce(a, y),
                "kl": 5 * (ref_kl(c, a) * (1.0000001 - softmax(c, axis=1)[np.arange(6), y])).mean(),
            },
        ),
    ],
    ids=["at", "trades", "mart"],
)  # fmt: skip
def test_s2o(logits, base, weight, classify):
    clean, adv, y = logits
    found = as_floats(S2O(base=base, diagonal=0.3).criterion(*tensors(clean, adv, y)))  # the published weights
    pulled = weight * (ref_pull(clean, y, 0.3) + ref_pull(adv, y, 0.3))
    assert found == pytest.approx(classify(clean, adv, y) | {"s2o": pulled}, rel=1e-6)


def test_s2o_labels_are_constants(logits):
    clean, _, y = logits
    z = torch.from_numpy(clean).requires_grad_()
    assert not soft_labels(z, torch.from_numpy(y)).requires_grad


@pytest.mark.parametrize("wrap", [lambda base: CAT(base=base), lambda base: FAT(base=base)], ids=["cat", "fat"])
def test_a_curriculum_has_its_bases_losses(logits, wrap):
    adv, clean, y = tensors(*logits)
    for base in (AT(attack=Steps()), TRADES(attack=Steps(), beta=2.0), MART(attack=Steps())):
        over = wrap(base)
        assert over.needs_clean == base.needs_clean
        assert as_floats(over.criterion(adv, clean, y)) == as_floats(base.criterion(adv, clean, y))
        aux = [as_floats(one.auxiliary_criterion(2 * clean)(adv, clean, y)) for one in (over, base)]
        assert aux[0] == aux[1]


def test_losses_are_float32_under_autocast():
    for strategy in (TRADES(attack=Steps()), MART(attack=Steps()), ALP(attack=Steps()), S2O(base=AT(attack=Steps()))):
        terms = strategy.criterion(Z_ADV.bfloat16(), Z.bfloat16(), Y)
        assert {value.dtype for value in terms.values()} == {torch.float32}


GRADIENT = {
    "trades": (TRADES(attack=Steps()), {"ce": (True, False), "kl": (True, True)}),
    "mart": (MART(attack=Steps()), {"bce": (False, True), "kl": (True, True)}),
    "alp": (ALP(attack=Steps()), {"ce": (True, True), "pairing": (True, True)}),
    "s2o": (S2O(base=AT(attack=Steps())), {"ce": (False, True), "s2o": (True, True)}),
}


@pytest.mark.parametrize("name", GRADIENT)
def test_gradients_flow_into_clean_and_adversarial_logits_where_the_method_says(name, logits):
    strategy, wanted = GRADIENT[name]
    adv, clean, y = tensors(*logits)
    adv, clean = adv.requires_grad_(), clean.requires_grad_()
    terms = strategy.criterion(adv, clean, y)
    found = {}
    for term, value in terms.items():
        gradients = torch.autograd.grad(value, (clean, adv), allow_unused=True, retain_graph=True)
        found[term] = tuple(gradient is not None and bool(gradient.any()) for gradient in gradients)
    assert found == wanted


def test_the_weight_of_mart_has_a_gradient(logits):
    clean, adv, y = logits
    z = torch.from_numpy(clean).requires_grad_()
    value = MART(attack=Steps()).criterion(torch.from_numpy(adv), z, torch.from_numpy(y))["kl"]
    (found,) = torch.autograd.grad(value, z)
    step = 1e-6
    numeric = np.zeros_like(clean)
    for index in np.ndindex(clean.shape):
        moved = [clean.copy(), clean.copy()]
        moved[0][index] += step
        moved[1][index] -= step
        up, down = (5 * (ref_kl(c, adv) * (1.0000001 - softmax(c, axis=1)[np.arange(6), y])).mean() for c in moved)
        numeric[index] = (up - down) / (2 * step)
    np.testing.assert_allclose(found.numpy(), numeric, atol=1e-7)


@pytest.mark.parametrize(
    "build",
    [
        lambda: TRADES(attack=Steps(), beta=-1.0),
        lambda: TRADES(attack=Steps(), beta=float("nan")),
        lambda: MART(attack=Steps(), lambda_kl=-0.1),
        lambda: ALP(attack=Steps(), weight=-1),
        lambda: ALP(attack=Steps(), form="half"),
        lambda: ALP(attack=Steps(), paired="logit"),
        lambda: S2O(base=AT(attack=Steps()), weight=0.6),
        lambda: S2O(base=AT(attack=Steps()), diagonal=-0.1),
        lambda: S2O(base=Natural()),
        lambda: CAT(base=Natural()),
        lambda: CAT(base=AT(attack=Steps()), max_strength=0),
        lambda: CAT(base=AT(attack=Steps()), strength=11),
        lambda: CAT(base=FAT(base=AT(attack=Steps()))),
        lambda: FAT(base=S2O(base=AT(attack=Steps()))),
        lambda: FAT(base=AT(attack=Threat(norm="linf", eps=0.1))),
        lambda: FAT(base=AT(attack=Steps()), patience=(0, 1)),
        lambda: FAT(base=AT(attack=Steps()), until=(90, 50)),
        lambda: FAT(base=AT(attack=Steps()), patience=(0, -1, 2)),
        lambda: FAT(base=AT(attack=Steps()), patience=(0.5, 1, 2)),
        lambda: FAT(base=AT(attack=Steps()), jitter=-1),
        lambda: CAT(base=AT(attack=Steps()), max_strength=2.5),
        lambda: TRADES(attack=Steps(), beta="abc"),
        lambda: TRADES(attack=Steps(), concat=True, share_noise=True),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(build):
    with pytest.raises(
        ValueError, match=r"^expected |^no ALP |builds on a strategy|replaces PGD|two forwards"
    ) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_one_class_is_too_few():
    z = torch.zeros(2, 1)
    with pytest.raises(ValueError, match="at least 2 classes"):
        MART(attack=Steps()).criterion(z, z, torch.zeros(2, dtype=torch.int64))
