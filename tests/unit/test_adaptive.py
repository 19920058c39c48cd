"""The adaptive evaluation as a whole: what it takes for masked, what for robust, and what its families come down to.

Every attack is that of its YAML, as `fsr evaluate evaluation=adaptive budget=smoke` has it.
"""

from functools import cache
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from torch.nn import functional

from fsr_lab.attack.pgd import PGD
from fsr_lab.core.record import CLEAN, NOT_RUN, WRONG
from fsr_lab.core.threat import Threat
from fsr_lab.defense.fsr import FSR
from fsr_lab.defense.staircase import Staircase
from fsr_lab.engine.build import assembled, build_model
from fsr_lab.evaluation.ledger import Ledger
from fsr_lab.evaluation.run import evaluate
from fsr_lab.model.defended import attach
from fsr_lab.model.tiny_cnn import TinyCNN
from fsr_lab.report.columns import columns_of, value
from fsr_lab.report.verdict import verdict

CONF = Path(__file__).parents[2] / "conf"
THREAT = Threat(norm="linf", eps=0.1)
NEAR = Threat(norm="linf", eps=6 / 255)
"""So small that some images of an untrained network hold."""
FAMILIES = tuple(f"a{number}" for number in range(1, 11))
COLOURS = torch.tensor([[1, 1, -1], [1, -1, 1], [-1, 1, 1], [-1, -1, -1]])
"""Of the classes: two of them differ in two channels."""


@pytest.fixture(scope="module")
def composed():
    """Return the config of `fsr evaluate evaluation=adaptive budget=smoke` on the toy set; tests change copies."""
    given = ["dataset=toy", "model=tiny_cnn", "model.batch_norm=true", "evaluation=adaptive", "budget=smoke"]
    with initialize_config_module("fsr_lab.conf", version_base="1.3"):
        return compose("evaluate", overrides=[*given, f"threat.eps={THREAT.eps}", "paths.run=unused", "label=unused"])


@pytest.fixture
def cfg(composed):
    return composed.copy()


def loaded(cfg, *names, plain=None):
    """Build attacks of a config, all if none is named, with a surrogate without the defence if one is given."""
    cfg.surrogates.plain = None if plain is None else "plain"
    nodes = OmegaConf.to_container(cfg.evaluation.attacks, resolve=True)
    return {name: assembled(nodes[name], lambda _: (plain, "plain")) for name in names or nodes}


def order(cfg):
    """Return the chains of a config, what they come after, and the limits."""
    return {key: OmegaConf.to_container(cfg.evaluation[key], resolve=True) for key in ("chains", "after", "limits")}


# What is left of a family whose point is taken away: plain ascent, image for image.


def fsr(mask):
    """Return a network with an FSR whose mask follows the image, or one whose mask follows none."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = attach(TinyCNN(num_classes=4), {"block2": FSR}, (3, 8, 8), 4).eval()
    with torch.no_grad():
        model.defenses["block2"].separation[-1].weight.mul_({"moving": 300, "constant": 0}[mask])
        model.defenses["block2"].recalibration[-1].weight.mul_(100)
    return model


@pytest.fixture(scope="module")
def crafted(composed, tmp_path_factory):
    """Return the function that attacks a network with one attack of the config, by its place there, under settings.

    The attack is called the same every time, and so has the same random draws. What comes back is its record, and its
    images out of the ledger. In float64, where rounding hardly ever decides between two iterates. Losses stay above 0
    whatever is added to them here: with that, as in the released code, APGD compares a run's first iterate.
    """
    x = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(5)).double()
    models = {mask: fsr(mask).double() for mask in ("moving", "constant")}
    shared = OmegaConf.masked_copy(composed, ["threat", "budget", "crafting"])  # copies of the whole take their time
    shared.threat.eps = NEAR.eps
    shared.budget = OmegaConf.merge(shared.budget, {"steps": 12, "restarts": 2, "rounds": 1})

    @cache
    def run(mask, place, settings):
        cfg = shared.copy()
        if place == "ascent":
            cfg.it = OmegaConf.load(CONF / "attack" / "ascent.yaml")
        else:
            cfg.it = OmegaConf.select(composed.evaluation.attacks, place).copy()
        for key, setting in settings:
            OmegaConf.update(cfg.it, key, setting, merge=False)
        attack = assembled(OmegaConf.to_container(cfg.it, resolve=True), None)
        model, folder = models[mask], tmp_path_factory.mktemp("ledger")
        record = evaluate(
            model, [(x, model(x).argmax(1))], {"it": attack}, threat=NEAR, seed=7, ledger=folder, keep_images=True,
            doctor=False,
        )  # fmt: skip
        (column,) = (unquote(path.name) for path in folder.iterdir() if path.name.startswith("it"))
        return record, np.concatenate([found for _, found in Ledger(folder, {}).images(column)])

    return lambda mask, place, **settings: run(mask, place, tuple(settings.items()))


def weighing(*weights):
    return {"objective.weights": weights}


ONCE = {"eot": 1, "early_exit": True, "restarts": 1}
"""A second start would come after other draws."""


@pytest.mark.parametrize(
    ("mask", "place", "settings"),
    [
        ("moving", "a1.attacks.tilde", weighing(1, 0)),
        ("moving", "a1.attacks.plus", weighing(1, 0)),
        ("moving", "a1.attacks.minus", weighing(1, 0)),
        ("moving", "a1.attacks.joint", weighing(1, 0, 0, 0)),
        ("moving", "a2.attacks.tau_1", {"objective.view.route.backward_tau": 0.1}),
        ("constant", "a3.attacks.stop", {}),
        ("constant", "a3.attacks.straight_through", {}),
        ("constant", "a4.attacks.ones", {}),
        ("constant", "a4.attacks.zeros", {}),
        ("constant", "a4.attacks.swap", {}),
        ("constant", "a4.attacks.other", {}),
        ("constant", "a4.attacks.ones_bce", weighing(1, 1)),
        ("moving", "a5.attacks.f", {"objective.view.route.part": "f_tilde"}),
        ("moving", "a6.attacks.training_noise", ONCE),
        ("moving", "a6.attacks.smoothing", ONCE | {"objective.view.std": 0}),
        ("moving", "a8.attacks.times_10", {"objective.loss.factor": 1}),
    ],
)
def test_a_neutral_setting_leaves_the_plain_ascent(mask, place, settings, crafted):
    starts = {key: settings[key] for key in ("restarts",) if key in settings}
    plain, images = crafted(mask, "ascent", **starts)
    assert 0 < plain.correct("it").sum() < len(plain)
    neutral, found = crafted(mask, place, **settings)
    assert np.array_equal(found, images)
    for field in ("outcome", "margin", "norm"):
        assert np.array_equal(getattr(neutral, field), getattr(plain, field)), field
    # with its point, and a mask that there is, it is another attack
    assert not np.array_equal(crafted("moving", place)[1], crafted("moving", "ascent")[1])


def test_a_round_under_a_constant_mask_is_ten_plain_steps(crafted):
    place, start = "a3.attacks.alternating", {"attack.random_start": False}
    steps = {"steps": 10, "relative_step": 0.25}
    record, found = crafted("constant", place, **start)
    plain, images = crafted("constant", "pgd20", **steps)
    assert 0 < plain.correct("it").sum() < len(plain)
    assert np.array_equal(found, images)
    assert np.array_equal(record.outcome, plain.outcome)
    assert not np.array_equal(crafted("moving", place, **start)[1], crafted("moving", "pgd20", **steps)[1])


# A network that is broken, and one that is not.


def drawn(count, contrast, jitter, noise):
    """Draw images of one of four colours, each image a little off it."""
    y = torch.randint(4, (count,))
    colours = 0.5 + contrast * COLOURS[y] + jitter * torch.randn(count, 3)
    return (colours[:, :, None, None] + noise * torch.randn(count, 3, 8, 8)).clamp(0, 1), y


FRAGILE = {"contrast": 0.06, "jitter": 0.0, "noise": 0.15}
"""Colours that a perturbation of the threat's size can exchange."""
FIRM = {"contrast": 0.16, "jitter": 0.06, "noise": 0.05}
"""Colours that it cannot, but for images that are far off theirs."""


def trained(task, craft=None):
    """Train a network on a task, and soon on what `craft` makes of its images; return it and new images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = TinyCNN(num_classes=4, batch_norm=True)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for step in range(60):
            x, y = drawn(128, **task)
            if craft is not None and step >= 20:
                x = craft(net, x, y)
            loss = functional.cross_entropy(net.train()(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return net.eval(), drawn(60, **task)


@pytest.fixture(scope="module")
def broken():
    """Return a naturally trained network under a staircase, the network without it, and images."""
    net, data = trained(FRAGILE)
    bare = TinyCNN(num_classes=4, batch_norm=True).eval()
    bare.load_state_dict(net.state_dict())
    return attach(net, {"block2": Staircase}, (3, 8, 8), 4).eval(), bare, data


@pytest.fixture(scope="module")
def sound():
    """Return an adversarially trained network, and images of which some can be broken."""
    return trained(FIRM, PGD(threat=THREAT, steps=3, relative_step=0.5, random_start=True))


def column(record, heading):
    """Return a column's value."""
    return value(record, next(each for each in columns_of(record) if each.heading == heading))


def broken_by(record, *names):
    """Return which samples one of some attacks got wrong."""
    return (record.outcome[[record.attacks.index(name) for name in names]] == WRONG).any(axis=0)


def test_each_family_alone_breaks_what_gradients_leave(cfg, broken):
    model, bare, data = broken
    cfg.budget.steps = 20
    attacks = loaded(cfg, "pgd20", "pgd100", "a2", "a3", "a7", "a10", plain=bare)
    record = evaluate(model, [data], attacks, threat=THREAT, seed=0, doctor=False)
    left = record.worst_case((CLEAN, "pgd20", "pgd100"))
    assert left.mean() > record.correct(CLEAN).mean() - 0.1 > 0.85
    for family in ("a2", "a3", "a7", "a10"):
        assert (left & broken_by(record, *record.members(family))).sum() > 0.9 * left.sum(), family
    found = verdict(record)
    taken = int((left & broken_by(record, "a7/plain")).sum())
    assert found.kind == "masked"
    assert found.evidence[0].rule == "transfer"
    assert found.sentence == (
        f"masked: the transfer attack a7/plain breaks {taken / left.sum():.1%} of the samples that the white-box "
        f"attacks before it leave ({taken} of {left.sum()})"
    )


def test_a_broken_network_is_unmasked(cfg, broken):
    model, bare, data = broken
    cfg.budget.steps = 20
    for name in ("apgd_ce", "apgd_t", "fab_t"):
        cfg.evaluation.attacks[name].steps = 20
    cfg.evaluation.attacks.square.queries = 10
    record = evaluate(model, [data], loaded(cfg, plain=bare), threat=THREAT, seed=0, **order(cfg))
    clean = column(record, "Natural").percent
    assert clean > 95
    for plain in ("PGD-20", "PGD-100", "C&W", "+FAB-T"):
        assert column(record, plain).percent > clean - 10
    assert column(record, "Adaptive worst case").percent < 10
    found = verdict(record)
    assert found.sentence.startswith(
        "masked: the check gradients fails with 1: 100.0% of the images have a gradient of exactly zero"
    )
    # what AutoAttack's Square has not found by chance, families find
    assert column(record, "AutoAttack").percent < 10
    assert column(record, "AutoAttack").correct > column(record, "Adaptive worst case").correct


def test_a_sound_network_is_not_called_masked(cfg, sound):
    model, data = sound
    cfg.evaluation.attacks.square.queries = 500
    natural, _ = trained(FIRM)
    record = evaluate(model, [data], loaded(cfg, plain=natural), threat=THREAT, seed=0, **order(cfg))
    autoattack, adaptive = column(record, "AutoAttack"), column(record, "Adaptive worst case")
    assert 30 < autoattack.percent < 90
    assert 100 * autoattack.interval.low < adaptive.percent <= autoattack.percent
    assert {name.partition("/")[0] for name in record.attacks if "/" in name} == {"a6", "a7", "a8", "a10"}
    survives = record.worst_case((CLEAN, *record.chains["autoattack"]))
    for name in record.chains["adaptive"]:
        assert (record.outcome[record.attacks.index(name)] != NOT_RUN)[survives].any()
    assert verdict(record).kind == "no sign of masking"


# Every family on every defence.

RUN = {
    "none": {"a6", "a8", "a10"},
    "fsr": {"a1", "a2", "a3", "a4", "a5", "a6", "a8", "a9", "a10"},
    "cas": {"a1", "a2", "a5", "a6", "a8", "a10"},
    "cifs": {"a1", "a2", "a3", "a6", "a8", "a10"},
    "kwta": {"a3", "a6", "a8", "a10"},
    "sap": {"a3", "a6", "a8", "a10"},
    "fd": {"a6", "a8", "a10"},
}
"""The families that have something to attack, without a surrogate."""
WHOLE = {
    "none": {"a8", "a10"},
    "fsr": {"a2", "a4", "a5", "a6", "a8", "a9", "a10"},
    "cas": {"a2", "a8", "a10"},
    "cifs": {"a8", "a10"},
    "kwta": {"a8", "a10"},
    "sap": {"a6", "a8", "a10"},
    "fd": {"a8", "a10"},
}
"""Those of them all of whose attacks have."""


@pytest.fixture(scope="module")
def families(composed):
    cfg = composed.copy()
    cfg.budget = OmegaConf.merge(cfg.budget, {"steps": 3, "queries": 40, "population": 10, "directions": 5})
    return loaded(cfg, *FAMILIES)


@pytest.mark.parametrize("defense", RUN)
def test_every_family_on_every_defence(defense, cfg, families, batch, capsys):
    x, y = batch
    cfg.defense = OmegaConf.load(CONF / "defense" / f"{defense}.yaml")
    model = build_model(cfg).train()
    model.backbone.block1.eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    record = evaluate(
        model, [(x, y)], families, threat=THREAT, seed=0, chains={"adaptive": FAMILIES}, doctor=False
    )  # fmt: skip
    assert {family for family in FAMILIES if record.members(family)} == RUN[defense]
    lines = capsys.readouterr().err.splitlines()
    told = {finding.attacks: finding for finding in record.findings}
    assert set(told) == {(family,) for family in FAMILIES if family not in WHOLE[defense]}
    for (family,), finding in told.items():
        assert finding[:2] == ("concerns", "skip")
        assert finding.text.startswith(f"{family} is {'run without' if family in RUN[defense] else 'left out:'}")
        assert any(
            reason in finding.text for reason in ("no defence of", "files no", "declares no", "no such surrogate")
        )
        assert finding.text in lines
    ran = record.outcome != NOT_RUN
    assert ran[0].all()
    assert ran[:, record.worst_case(record.attacks)].all()
    assert record.norm[ran].max() <= THREAT.eps + 1e-6
    assert np.isfinite(record.margin[ran]).all()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
