"""Transfer: crafted on the source alone, judged on the target, and told apart in a record by the source's weights."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

from fsr_lab.attack.on_aux import OnAux
from fsr_lab.attack.pgd import PGD
from fsr_lab.attack.transfer import Transfer
from fsr_lab.core.hashing import state_hash
from fsr_lab.core.objective import CrossEntropy
from fsr_lab.core.threat import Threat
from fsr_lab.defense.fsr import FSR
from fsr_lab.evaluation.run import evaluate
from fsr_lab.model.defended import attach
from fsr_lab.model.tiny_cnn import TinyCNN

LINF = Threat(norm="linf", eps=0.1)


def pgd(**options):
    return PGD(**({"threat": LINF, "steps": 5, "relative_step": 0.25, "random_start": False} | options))


def untouchable(x):
    raise AssertionError("the target was asked")


def test_it_is_the_attack_on_the_source(classifier, batch):
    found = Transfer(source=classifier, attack=pgd())(untouchable, *batch)
    assert torch.equal(found, pgd()(classifier, *batch))
    assert classifier.training


def test_it_moves_the_target_as_far_as_the_two_agree(batch):
    """Linear networks: along the sign of the source's weights the target's logit falls by its own weights there."""
    x, y = 0.3 + 0.4 * batch[0], torch.zeros(8, dtype=torch.long)
    source, target = (nn.Sequential(nn.Flatten(), nn.Linear(192, 2)) for _ in range(2))
    with torch.no_grad():
        target[1].weight.copy_(0.5 * source[1].weight + 0.5 * target[1].weight)
    found = Transfer(source=source, attack=pgd())(target, x, y)
    along = (source[1].weight[1] - source[1].weight[0]).sign()
    gain = functional.linear(0.1 * along, target[1].weight[1] - target[1].weight[0])
    before, after = (target(image)[:, 1] - target(image)[:, 0] for image in (x, found))
    torch.testing.assert_close(after - before, gain.expand(8), atol=1e-5, rtol=0)
    assert gain > 0.1


def test_an_evaluation_judges_the_target_and_counts_its_passes(classifier, linear, batch):
    attacks = {"white": pgd(), "transfer": Transfer(source=linear, attack=pgd(), label="linear")}
    record = evaluate(classifier.eval(), [batch], attacks, threat=LINF, seed=0)
    x_adv = pgd()(linear, *batch)
    right = (classifier(x_adv).argmax(1) == batch[1]).numpy()
    assert (record.correct("transfer") == right).all()
    cost = dict(zip(record.attacks, zip(record.forwards, record.backwards, strict=True), strict=True))
    assert cost["white"] == (40, 40)
    assert cost["transfer"] == (0, 0)
    assert record.settings["transfer"].startswith(
        f"Transfer(source=<linear, weights {state_hash(linear.state_dict())}>"
    )


def test_what_it_tells_of_itself_is_the_attacks(linear):
    attack = Transfer(source=linear, attack=pgd(random_start=True))
    assert (attack.threat, attack.policy) == (LINF, pgd().policy)
    assert attack.is_random
    assert not Transfer(source=linear, attack=pgd()).is_random
    assert not attack.exact_on_linear


def test_with_the_target_it_is_crafted_on_the_mean_of_both_networks_logits(batch):
    """Of linear networks that is the linear network of the mean weights."""
    x, y = batch
    source, target, mean = (nn.Sequential(nn.Flatten(), nn.Linear(192, 4)) for _ in range(3))
    with torch.no_grad():
        mean[1].weight.copy_((source[1].weight + target[1].weight) / 2)
        mean[1].bias.copy_((source[1].bias + target[1].bias) / 2)
    found = Transfer(source=source, attack=pgd(), with_target=True)(target, x, y)
    torch.testing.assert_close(found, pgd()(mean, x, y))
    assert not torch.equal(found, pgd()(source, x, y))


def test_with_the_target_its_passes_count_and_it_is_no_gradient_free_attack(classifier, linear, batch):
    attacks = {"ensemble": Transfer(source=linear, attack=pgd(), label="linear", with_target=True)}
    classifier.train()
    record = evaluate(classifier, [batch], attacks, threat=LINF, seed=0)
    assert record.forwards[1] == record.backwards[1] == 40
    assert classifier.training
    assert all(parameter.requires_grad for parameter in classifier.parameters())
    assert all(parameter.requires_grad for parameter in linear.parameters())
    assert record.settings["ensemble"].startswith("Transfer(with_target=True, source=<linear, weights ")
    assert "gradient-free" not in {finding.check for finding in record.findings}


def test_it_asks_of_the_source_what_the_attack_lacks(linear, batch):
    defended = attach(TinyCNN(num_classes=4), {"block2": FSR}, (3, 8, 8), 4).eval()
    attack = pgd(objective=OnAux(key="p_plus", loss=CrossEntropy()))
    assert Transfer(source=defended, attack=attack).lacks(linear, batch[0]) is None
    for given in ({"source": linear}, {"source": defended, "with_target": True}):
        assert "no auxiliary tensor" in Transfer(attack=attack, **given).lacks(defended, batch[0])


PRINT = """
import torch
from torch import nn
from fsr_lab.attack.pgd import PGD
from fsr_lab.attack.transfer import Transfer
from fsr_lab.core.threat import Threat
net = nn.Linear(2, 2)
nn.init.constant_(net.weight, 0.5), nn.init.zeros_(net.bias)
attack = PGD(threat=Threat(norm="linf", eps=0.1), steps=5, relative_step=0.25, random_start=False)
print(Transfer(source=net, attack=attack, label="half"))
"""


def test_its_text_is_the_same_in_another_process_and_not_for_other_weights():
    net = nn.Linear(2, 2)
    nn.init.constant_(net.weight, 0.5)
    nn.init.zeros_(net.bias)
    attack = Transfer(source=net, attack=pgd(), label="half")
    there = subprocess.run([sys.executable, "-c", PRINT], capture_output=True, text=True, check=True).stdout.strip()
    assert repr(attack) == there
    nn.init.constant_(net.bias, 0.25)
    assert repr(attack) != there
    assert repr(Transfer(source=len, attack=pgd())).startswith("Transfer(source=<builtin_function_or_method>, ")


def test_no_source_is_refused_with_the_way_to_one():
    with pytest.raises(ValueError, match=r"got None; give surrogate=RUN.*fsr train model=resnet50 strategy=natural"):
        Transfer(source=None, attack=pgd())
