"""An evaluation counts every sample once, judges the deployed network, and depends on nothing but its arguments."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fsr_lab.attack.apgd import APGD
from fsr_lab.attack.pgd import PGD
from fsr_lab.core.crafting import Policy
from fsr_lab.core.hashing import state_hash
from fsr_lab.core.objective import KLFromClean, Margin, OnLogits
from fsr_lab.core.record import PAPER_FOUR, EvaluationRecord
from fsr_lab.core.route import Route
from fsr_lab.core.threat import Threat
from fsr_lab.defense.fsr import FSR
from fsr_lab.evaluation.counting import Counted
from fsr_lab.evaluation.run import cell_seed, evaluate
from fsr_lab.model.defended import attach
from fsr_lab.model.tiny_cnn import TinyCNN

THREAT = Threat(norm="linf", eps=8 / 255)


def pgd(steps=3, **options):
    return PGD(**({"threat": THREAT, "steps": steps, "relative_step": 0.25, "random_start": False} | options))


RANDOM = pgd(random_start=True)


@pytest.fixture
def model():
    """A linear model of four classes that is right on about half of the samples."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    with torch.no_grad():
        net[1].weight.mul_(4)
    return net


@pytest.fixture
def data(model):
    """Twenty images, as batches of uneven size; every other label is what the model says."""
    x = torch.rand(20, 3, 8, 8)
    y = model(x).argmax(1)
    y[::2] = (y[::2] + 1) % 4
    return [(x[:7], y[:7]), (x[7:8], y[7:8]), (x[8:], y[8:])]


def run(model, data, attacks=None, **options):
    attacks = {"random": RANDOM} if attacks is None else attacks
    return evaluate(model, data, attacks, **({"threat": THREAT, "seed": 0, "chunk": 6} | options))


def rows(record, name):
    index = record.attacks.index(name)
    return [array[index] for array in (record.outcome, record.margin, record.norm)]


def same_rows(left, right, name):
    return all(np.array_equal(a, b) for a, b in zip(rows(left, name), rows(right, name), strict=True))


def test_clean_accuracy_is_attack_zero(model, data):
    record = run(model, data, {})
    x, y = (torch.cat(part) for part in zip(*data, strict=True))
    assert record.attacks == ("clean",)
    assert record.correct("clean").tolist() == (model(x).argmax(1) == y).tolist() == [False, True] * 10
    assert record.norm.tolist() == [[0.0] * 20]
    assert record.ids.tolist() == list(range(20))
    assert record.labels.tolist() == y.tolist()
    assert record.forwards.tolist() == record.backwards.tolist() == [0]


def test_outcome_margin_and_norm_are_those_of_the_attacks_images(model, data):
    attack = pgd()
    record = run(model, data, {"pgd": attack})
    x, y = (torch.cat(part) for part in zip(*data, strict=True))
    x_adv = attack(model, x, y)
    logits = model(x_adv).detach()
    margin = [row[label] - max(row[k] for k in range(4) if k != label) for row, label in zip(logits, y, strict=True)]
    outcome, margins, norm = rows(record, "pgd")
    assert outcome.dtype == np.int8
    assert margins == pytest.approx(np.array(margin), abs=1e-5)
    assert outcome.tolist() == (logits.argmax(1) == y).int().tolist()
    assert norm == pytest.approx((x_adv - x).abs().amax((1, 2, 3)).numpy(), abs=1e-7)
    assert 0 < record.correct("pgd").sum() < record.correct("clean").sum()


def test_the_same_seed_gives_the_same_record(model, data):
    first, again, other = run(model, data), run(model, data), run(model, data, seed=1)
    assert same_rows(first, again, "random")
    assert not same_rows(first, other, "random")
    assert same_rows(first, other, "clean")


def test_how_the_batches_were_cut_changes_nothing(model, data):
    x, y = (torch.cat(part) for part in zip(*data, strict=True))
    assert same_rows(run(model, data), run(model, [(x, y)]), "random")
    assert not same_rows(run(model, data), run(model, data, chunk=5), "random")


def test_neither_order_nor_company_changes_an_outcome(model, data):
    attacks = {"random": RANDOM, "other": replace(RANDOM, steps=2), "third": pgd(1)}
    whole = run(model, data, attacks)
    for names in (["other", "third", "random"], ["random"], ["third", "other"]):
        part = run(model, data, {name: attacks[name] for name in names})
        assert part.attacks == ("clean", *names)
        assert all(same_rows(part, whole, name) for name in part.attacks)


def test_two_attacks_under_two_names_draw_apart(model, data):
    record = run(model, data, {"one": RANDOM, "two": RANDOM})
    assert rows(record, "one")[1].tolist() != rows(record, "two")[1].tolist()
    seeds = {cell_seed(seed, name, index) for seed in (0, 1) for name in ("one", "two") for index in (0, 1)}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_random_state_of_the_caller_is_its_own(model, data):
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    run(model, data)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), states[2], strict=True))


def test_the_random_state_is_given_back_after_an_error(model, data):
    def fails(model, x, y):
        torch.rand(3)
        raise ArithmeticError("in an attack")

    state = torch.get_rng_state()
    with pytest.raises(ArithmeticError, match="in an attack"):
        run(model, data, {"fails": fails})
    assert torch.equal(torch.get_rng_state(), state)


def test_costs_are_counted_per_image(classifier, data):
    attacks = {
        "fgsm": pgd(1), "pgd20": pgd(20), "kl": pgd(4, objective=OnLogits(KLFromClean())),
        "margin": pgd(5, objective=OnLogits(Margin())), "nothing": lambda model, x, y: x,
    }  # fmt: skip
    record = run(classifier, data, attacks)
    assert dict(zip(record.attacks, record.forwards.tolist(), strict=True)) == {
        "clean": 0, "fgsm": 0, "pgd20": 20 * 20, "kl": 20 * 5, "margin": 20 * 5, "nothing": 0,
    }  # fmt: skip
    assert dict(zip(record.attacks, record.backwards.tolist(), strict=True)) == {
        "clean": 0, "fgsm": 0, "pgd20": 20 * 20, "kl": 20 * 4, "margin": 20 * 5, "nothing": 0,
    }  # fmt: skip  # the first step is on the way of the twenty


def test_an_image_shown_several_times_is_counted_once_each(classifier, data):
    eot = APGD(threat=THREAT, steps=3, eot=5)
    record = run(classifier, data, {"eot": eot}, doctor=False)
    right = int(record.correct("clean").sum())
    assert record.backwards.tolist() == [0, 3 * 5 * right]


def test_the_look_that_folding_takes_is_not_counted(classifier, data):
    fold = pgd(2, policy=Policy(fold=True))
    first, second = run(classifier, data, {"a": fold, "b": replace(fold, relative_step=0.5)}).forwards[1:].tolist()
    assert (first, second) == (40, 40)  # what can be folded is found before, on one image


def test_counting_changes_nothing_else(batch):
    x, y = batch
    model = attach(TinyCNN(num_classes=4), {"block2": FSR}, (3, 8, 8), 4).eval()
    counted = Counted(model)
    assert torch.equal(counted(x), model(x))
    out = counted.forward_with_aux(x, y)
    assert torch.equal(out.logits, model(x))
    assert list(out.aux) == ["block2"]
    assert (counted.forwards, counted.backwards) == (16, 0)
    assert counted.has_attack_terms is False
    assert torch.equal(counted.routed({"block2": Route(part="f")})(x), model.routed({"block2": Route(part="f")})(x))
    assert counted.forwards == 24  # a routed view counts with its model
    image = x.clone().requires_grad_()
    torch.autograd.grad(counted(image).sum(), image)
    assert (counted.forwards, counted.backwards) == (32, 8)
    counted.reset()
    assert (counted.forwards, counted.backwards) == (0, 0)
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = counted.no_such_thing


def test_a_network_in_training_is_judged_as_deployed_and_left_in_training(data):
    model = attach(TinyCNN(num_classes=4, batch_norm=True), {"block2": FSR}, (3, 8, 8), 4).train()
    buffers = [buffer.clone() for buffer in model.buffers()]
    record = run(model, data)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))
    again = run(model.eval(), data)
    assert all(same_rows(record, again, name) for name in ("clean", "random"))


def test_the_judge_is_float32_whatever_surrounds_it(model, data):
    wanted = run(model, data)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        found = run(model, data)
    assert all(same_rows(found, wanted, name) for name in ("clean", "random"))


def test_a_plain_callable_will_do(model, data):
    record = run(lambda x: model(x), data)
    assert same_rows(record, run(model, data), "random")
    assert "weights" not in record.provenance.hashes


def test_the_record_says_what_was_evaluated(model, data):
    options = {"name": "AT", "command": "fsr evaluate run=x", "data_hash": "abc", "seed": 7, "chunk": 9}
    attacks = {"a": pgd(2, policy=Policy(dtype="bfloat16")), "b": pgd(3)}
    record = run(model, data, attacks, **options)
    assert (record.name, record.precision, record.threat) == ("AT", "bfloat16, float32", THREAT)
    assert (record.chunk, dict(record.settings)) == (9, {name: repr(attack) for name, attack in attacks.items()})
    assert (record.provenance.command, record.provenance.seed) == ("fsr evaluate run=x", 7)
    before = record.provenance.hashes
    assert before == {"data": "abc", "weights": state_hash(model.state_dict())}
    with torch.no_grad():
        model[1].bias[0] += 1e-3
    assert run(model, data, **options).provenance.hashes["weights"] != before["weights"]


def test_a_record_of_an_evaluation_survives_the_disk(model, data, tmp_path):
    record = run(model, data)
    loaded = EvaluationRecord.load(record.save(tmp_path, "last"))
    assert all(same_rows(loaded, record, name) for name in record.attacks)
    assert loaded.provenance == record.provenance


def test_the_ensemble_is_the_worst_case_of_each_sample(model, data):
    record = run(model, data, {"fgsm": pgd(1), "pgd20": pgd(20), "pgd100": RANDOM, "cw30": pgd(2)})
    each = np.stack([record.correct(name) for name in PAPER_FOUR])
    assert np.array_equal(record.worst_case(PAPER_FOUR), each.all(0))
    assert record.worst_case(PAPER_FOUR).mean() <= each.mean(1).min()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1.5, r"expected images in \[0, 1\], got values in \[.*, 1.5\]; normalise inside the model"),
        (-0.1, r"expected images in \[0, 1\], got values in \[-0.1, "),
        (torch.nan, "expected finite images, got NaN or infinity"),
        (torch.inf, "expected finite images, got NaN or infinity"),
    ],
)
def test_one_bad_pixel_anywhere_is_refused(value, message, model, data):
    data[2][0][-1, 2, 7, 7] = value
    with pytest.raises(ValueError, match=message) as caught:
        run(model, data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [lambda x: (255 * x).byte(), lambda x: x.flatten(1)], ids=["bytes", "flat"])
def test_what_is_no_image_is_refused(change, model, data):
    with pytest.raises(ValueError, match=r"expected float images \(N, C, H, W\), got \(6, "):
        run(model, [(change(x), y) for x, y in data])


@pytest.mark.parametrize(("label", "message"), [(4, r"labels in \[0, 4\), got 0 to 4"), (-1, r"got -1 to 3")])
def test_a_label_out_of_range_is_refused(label, message, model, data):
    data[0][1][3] = label
    with pytest.raises(ValueError, match=message) as caught:
        run(model, data, chunk=20)
    assert "\n" not in str(caught.value)


def test_labels_of_another_kind_are_refused(model, data):
    with pytest.raises(ValueError, match=r"expected int64 labels \(N,\), got \(6,\) of torch.int32"):
        run(model, [(x, y.int()) for x, y in data])


@pytest.mark.parametrize(
    ("broken", "error", "message"),
    [
        (lambda z: (z, z), TypeError, "expected the model to return logits, got tuple; wrap it to return one tensor"),
        (lambda z: torch.full_like(z, torch.nan), ValueError, "the model gives NaN or infinite logits"),
        (lambda z: z * torch.inf, ValueError, "the model gives NaN or infinite logits"),
        (lambda z: z[:-1], ValueError, r"expected logits of shape \(6, K\), got \(5, 4\)"),
        (lambda z: z[:, 0], ValueError, r"expected logits of shape \(6, K\), got \(6,\)"),
    ],
)
def test_a_model_that_gives_no_logits_is_refused(broken, error, message, model, data):
    with pytest.raises(error, match=message) as caught:
        run(lambda x: broken(model(x)), data)
    assert "\n" not in str(caught.value)


def shifted(by):
    def attack(model, x, y):
        return x.mul(0.5).add(0.25) if by is None else x + by

    return attack


@pytest.mark.parametrize("lie", [shifted(None), pgd(threat=Threat(norm="linf", eps=16 / 255), relative_step=1.0)])
def test_an_attack_that_leaves_the_ball_is_refused(lie, model, data):
    with pytest.raises(ValueError, match=r"attack 'lie' left the threat set: linf .* at eps 0.031373; give") as caught:
        run(model, data, {"lie": lie})
    assert "\n" not in str(caught.value)


def test_an_attack_in_another_norm_is_refused(model, data):
    with pytest.raises(ValueError, match="attack 'lie' left the threat set: l2 perturbation"):
        run(model, data, {"lie": pgd(10)}, threat=Threat(norm="l2", eps=8 / 255))


@pytest.mark.parametrize(
    "lie",
    [shifted(0.03), shifted(torch.nan), lambda model, x, y: x[:, :1]],
    ids=["beyond the box", "NaN", "another shape"],
)
def test_an_attack_that_gives_no_images_is_refused_by_its_name(lie, model, data):
    data = [(x.clamp(0.98, 1), y) for x, y in data]
    with pytest.raises(ValueError, match="attack 'lie'"):
        run(model, data, {"lie": lie})


def test_an_attack_of_exactly_eps_is_within_it(model, data):
    record = run(model, data, {"corner": pgd(1, relative_step=1.0)})
    assert rows(record, "corner")[2].max() == pytest.approx(8 / 255, abs=1e-7)


def test_nothing_to_evaluate_is_refused(model, data):
    with pytest.raises(ValueError, match="expected at least one image to evaluate on, got none"):
        run(model, [])
    with pytest.raises(ValueError, match="expected a chunk of at least 1 sample, got 0"):
        run(model, data, chunk=0)
    with pytest.raises(ValueError, match="an attack cannot be called 'clean': that is attack zero"):
        run(model, data, {"clean": pgd()})


def test_the_doctor_has_looked_before_and_after(classifier, data):
    record = run(classifier, data, {"fgsm": pgd(1), "pgd20": pgd(20)})
    checks = {finding.check for finding in record.findings}
    assert {"images", "finite", "logits", "deterministic", "gradients"} <= checks  # before
    assert {"inside-ball", "fgsm"} <= checks  # after
    assert run(classifier, data, {}, doctor=False).findings == ()


def test_what_the_doctor_finds_is_in_the_record(model, data):
    record = run(nn.Sequential(model, nn.Softmax(1)), data)
    assert [(finding.check, finding.attacks) for finding in record.findings if finding.verdict == "fail"] == [
        ("logits", ()),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("threat", "message"),
    [
        (Threat(norm="linf", eps=0), "eps is 0, and attacks have no room"),
        (Threat(norm="linf", eps=8), "eps 8 is wider than the pixel range"),
    ],
)
def test_an_eps_at_which_there_is_nothing_to_evaluate_is_refused(model, data, threat, message):
    with pytest.raises(ValueError, match=message):
        run(model, data, {}, threat=threat)


@pytest.mark.parametrize(
    "batches", [[(torch.rand(2, 3, 8, 8), None)], [torch.rand(2, 3, 8, 8)], [(torch.rand(2, 3, 8, 8),)]]
)
def test_images_without_labels_are_refused(model, batches):
    with pytest.raises(TypeError, match="expected batches of images and labels"):
        run(model, batches, {})
