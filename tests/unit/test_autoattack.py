"""AutoAttack's standard version as a whole, beside the published package: who is left standing."""

import copy

import pyautoattack
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from fsr_lab.core.record import CLEAN
from fsr_lab.core.threat import Threat
from fsr_lab.evaluation.run import evaluate


def standard(norm, eps, *words):
    """Return the attacks and the chain of `evaluation=autoattack`."""
    with initialize_config_module("fsr_lab.conf", version_base="1.3"):
        cfg = compose("evaluate", ["evaluation=autoattack", f"threat.norm={norm}", f"threat.eps={eps}", *words])
    attacks = {name: instantiate(node, _convert_="all") for name, node in cfg.evaluation.attacks.items()}
    return attacks, {name: tuple(chain) for name, chain in cfg.evaluation.chains.items()}


@pytest.mark.parametrize(("norm", "eps"), [("linf", 8 / 255), ("l2", 0.3)])
@pytest.mark.slow
def test_it_leaves_the_samples_that_the_published_package_leaves(trained, norm, eps):
    model, x, y = copy.deepcopy(trained[0]).float(), trained[1][:24].float(), trained[2][:24]
    attacks, chains = standard(norm, eps)
    assert chains == {"autoattack": ("apgd_ce", "apgd_t", "fab_t", "square")}
    record = evaluate(model, [(x, y)], attacks, threat=Threat(norm=norm, eps=eps), seed=0, chains=chains, doctor=False)
    ours = torch.from_numpy(record.worst_case((CLEAN, *chains["autoattack"])))
    theirs = pyautoattack.AutoAttack(
        model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, version="standard", device="cpu", seed=0
    )
    theirs.verbose = False
    theirs.apgd_targeted.n_target_classes = theirs.fab.n_target_classes = 5  # with 9 of 6 classes it breaks
    x_adv, _ = theirs.run_standard_evaluation(x.clone(), y.clone(), batch_size=len(x))
    left = model(x_adv).argmax(1) == y
    assert 0 < left.sum() < (model(x).argmax(1) == y).sum()
    # starts and squares are other draws: one sample on the brink may fall to the one and not to the other
    assert (ours != left).sum() <= 1


def test_it_runs_on_two_and_three_classes_and_says_what_it_replaced():
    torch.manual_seed(0)
    x = torch.rand(20, 3, 8, 8)
    for classes in (2, 3):
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, classes))
        attacks, chains = standard("linf", 0.01, "evaluation.attacks.square.queries=50")
        record = evaluate(
            model, [(x, model(x).argmax(1))], attacks, threat=Threat(norm="linf", eps=0.01), seed=0, chains=chains
        )
        replaced = [finding for finding in record.findings if finding.check == "classes"]
        assert [finding.attacks for finding in replaced] == [("apgd_t",)]
        assert "TargetedMargin" in record.settings["apgd_t"]
        assert 0 < record.worst_case((CLEAN, *chains["autoattack"])).sum() < 20
