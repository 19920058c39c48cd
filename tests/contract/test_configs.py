"""Every option of every group composes with the rest, and every experiment builds what it trains."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fsr_lab.core.crafting import Policy
from fsr_lab.core.threat import Threat
from fsr_lab.engine.build import (
    build_attacks,
    build_model,
    build_module,
    build_policy,
    build_strategy,
    build_threat,
)

CONF = Path(__file__).parents[2] / "conf"
AT = {"attack": "attack@val_attack", "crafting": "crafting@crafting.train"}
"""Groups that stand at more than one place; elsewhere the group is its own place."""

OPTIONS = sorted(
    path.relative_to(CONF).with_suffix("").as_posix()
    for path in CONF.glob("*/**/*.yaml")
    if path.relative_to(CONF).parts[0] not in ("hydra", "experiment")
    and path.relative_to(CONF).as_posix() not in ("launcher/ray.yaml", "hparams_search/optuna.yaml")
)
"""All but experiments, which build something, and what needs packages of its own."""


def resolved(cfg):
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_every_group_composes(option, compose_config):
    group, _, name = option.partition("/")
    verb = "analyze" if group == "analysis" else "train"
    cfg = compose_config(f"{AT.get(group, group)}={name}", verb=verb)
    assert resolved(cfg)["seed"] == 0


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_verbs_compose_with_one_threat_for_all(verb, compose_config):
    cfg = compose_config("threat.eps=5/255", "dataset=toy", verb=verb)
    resolved(cfg)
    threat = build_threat(cfg)
    assert threat == Threat(norm="linf", eps=5 / 255)
    attacks = build_attacks(cfg)
    assert list(attacks) == ["fgsm", "pgd20", "pgd100", "cw30"]
    assert {attack.threat for attack in attacks.values()} == {threat}
    assert {attack.policy for attack in attacks.values()} == {build_policy(cfg)} == {Policy()}


def test_prepare_composes(compose_config):
    assert resolved(compose_config("dataset=cifar10", verb="prepare"))["dataset"]["name"] == "cifar10"


def test_doctor_composes_without_attacks(compose_config):
    cfg = resolved(compose_config("threat.eps=5/255", "dataset=toy", verb="doctor"))
    assert (cfg["threat"]["eps"], cfg["dataset"]["name"], cfg["samples"]) == ("5/255", "toy", 64)
    assert "evaluation" not in cfg


def test_the_papers_protocol(compose_config):
    attacks = build_attacks(compose_config("dataset=cifar10"))
    found = {
        name: (attack.steps, attack.relative_step, attack.random_start, type(attack.objective.loss).__name__)
        for name, attack in attacks.items()
    }
    assert found == {
        "fgsm": (1, 1.0, False, "CrossEntropy"),
        "pgd20": (20, 0.1, False, "CrossEntropy"),
        "pgd100": (100, 0.1, False, "CrossEntropy"),
        "cw30": (30, 0.1, False, "Margin"),
    }
    assert attacks["cw30"].objective.loss.kappa == 50
    assert {attack.threat.eps for attack in attacks.values()} == {8 / 255}


def test_the_protocol_of_transfer_attacks(load_attack, compose_config):
    names = ("mifgsm", "di_fgsm", "di_mifgsm", "ti_fgsm", "ti_fgsm_kernel5", "ti_mifgsm", "ti_dim")
    attacks = {name: load_attack(name) for name in names}
    found = {
        name: (attack.steps, attack.relative_step, attack.momentum,
               attack.diversity and attack.diversity.probability, attack.smoothing and attack.smoothing.size)
        for name, attack in attacks.items()
    }  # fmt: skip
    assert found == {
        "mifgsm": (10, 0.25, 1.0, None, None),
        "di_fgsm": (10, 0.25, 0.0, 0.5, None),
        "di_mifgsm": (10, 0.25, 1.0, 0.5, None),
        "ti_fgsm": (10, 0.25, 0.0, None, 15),
        "ti_fgsm_kernel5": (10, 0.25, 0.0, None, 5),
        "ti_mifgsm": (10, 0.25, 1.0, None, 15),
        "ti_dim": (10, 0.1, 1.0, 0.4, 15),
    }
    assert not any(attack.random_start for attack in attacks.values())
    both = compose_config("evaluation=transfer", "threat=linf_16", verb="evaluate")
    assert build_threat(both).eps == 16 / 255
    assert [name for name in both.evaluation.attacks if name.startswith("transfer_")] == [
        "transfer_mi", "transfer_di", "transfer_ti",
    ]  # fmt: skip


def test_training_crafts_as_the_papers_protocol(compose_config):
    cfg = compose_config("dataset=cifar10")
    training, validation = build_strategy(cfg).attack, instantiate(cfg.val_attack, _convert_="all")
    assert (training.steps, training.relative_step, training.random_start) == (10, 0.25, True)
    assert (validation.steps, validation.relative_step, validation.random_start) == (10, 0.25, False)
    assert training.threat == validation.threat == Threat(norm="linf", eps=8 / 255)


def test_a_step_is_taken_from_the_recipe(compose_config):
    cfg = compose_config("dataset=cifar10", "dataset.recipe.train_relative_step=0.125")
    assert build_strategy(cfg).attack.relative_step == 0.125


@pytest.mark.parametrize("override", ["attack@val_attack=pgd21", "defense=fsrr", "nonsense=1", "strategy=att"])
def test_what_does_not_exist_is_refused(override, compose_config):
    group = override.partition("=")[0].partition("@")[0]
    with pytest.raises(Exception, match=group) as caught:
        compose_config(override)
    assert type(caught.value).__module__.startswith("hydra")


def test_every_experiment_builds_what_it_trains(experiment_name, compose_config):
    resolved(compose_config(f"experiment={experiment_name}"))
    cfg = compose_config(f"experiment={experiment_name}", "model.width=4")  # the same, and soon built
    assert OmegaConf.is_dict(cfg.claim)
    assert {"expected", "hardware", "hours"} <= set(cfg.claim)
    model = build_model(cfg).eval()
    strategy = build_strategy(cfg)
    attacks = [*build_attacks(cfg).values(), instantiate(cfg.val_attack, _convert_="all")]
    if getattr(strategy, "attack", None) is not None:
        attacks.append(strategy.attack)
    assert {attack.threat for attack in attacks} == {build_threat(cfg)}
    shape = cfg.dataset.image_shape
    assert model(torch.rand(2, *shape)).shape == (2, cfg.dataset.num_classes)
    assert bool(model.defenses) == (cfg.defense.at is not None)


@pytest.mark.parametrize(
    ("scale", "found"),
    [
        ("paper", ("cifar10", 64, 64, 10, 0.25, 100, None)),
        ("cpu", ("cifar10", 16, 16, 5, 0.375, 3, 2000)),
        ("smoke", ("digits", 4, 4, 1, 1.0, 1, 20)),
    ],
)
def test_a_scale_changes_the_size_of_an_experiment_and_no_more(scale, found, compose_config):
    cfg = compose_config("experiment=table1_cifar10/resnet18_fsr_trades", f"scale={scale}")
    attack = cfg.strategy.attack
    assert (
        cfg.dataset.name, cfg.model.width, cfg.defense.module.width, attack.steps, attack.relative_step,
        cfg.trainer.max_epochs, cfg.test_samples,
    ) == found  # fmt: skip
    assert (cfg.strategy.beta, cfg.defense.module.tau, cfg.name) == (6.0, 0.1, scale)
    assert build_threat(cfg).eps == pytest.approx(0.12 if scale == "smoke" else 8 / 255)


def test_the_command_line_stands_above_a_scale(compose_config):
    cfg = compose_config("experiment=table1_svhn/resnet18_at", "scale=smoke", "dataset=toy", "trainer.max_epochs=7")
    assert (cfg.dataset.name, cfg.trainer.max_epochs, cfg.strategy.attack.steps) == ("toy", 7, 1)


def test_a_natural_experiment_has_a_scale_too(compose_config):
    cfg = compose_config("experiment=figure1/resnet18_natural", "scale=cpu")
    assert "attack" not in cfg.strategy
    assert build_strategy(cfg) is not None


def test_an_experiment_of_several_defences_builds_each_of_them(compose_config):
    # it sets the bottleneck's width, which `none` has no use for
    for defense in ("none", "fsr", "fsr_wo_sep"):
        model = build_model(compose_config("experiment=cifar10_quick", f"defense={defense}"))
        assert list(model.defenses) == ([] if defense == "none" else ["layer4"])


@pytest.mark.parametrize("at", ["block1", "[block1,block2]", "{block1: {tau: 0.5}, block2: null}"])
def test_a_defence_takes_points_in_three_forms(at, compose_config, toy):
    model = build_model(compose_config(*toy, f"defense.at={at}"))
    assert list(model.defenses) == [point for point in ("block1", "block2") if point in at]
    taus = [defense.tau for defense in model.defenses.values()]
    assert taus == ([0.5, 0.1] if "tau" in at else [0.1] * len(taus))


def test_the_model_is_drawn_from_the_seed(compose_config, toy):
    one, again, other = (build_model(compose_config(*toy, f"seed={seed}")).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not torch.equal(one["backbone.fc.weight"], other["backbone.fc.weight"])


@pytest.mark.parametrize("decay_all", ["true", "false"])
def test_weight_decay_spares_biases_and_batch_norm_where_it_is_asked_to(decay_all, compose_config, toy):
    cfg = compose_config(*toy, "defense=fsr", f"optim.decay_all={decay_all}", "optim.optimizer.weight_decay=0.5")
    module = build_module(cfg, build_model(cfg))
    optimizer = module.build_optimizer(module.parameter_groups())
    names = {parameter: name for name, parameter in module.model.named_parameters()}
    decay = {names[p]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert set(decay) == set(names.values())
    spared = {name for name, value in decay.items() if value == 0}
    flat = {name for name, parameter in module.model.named_parameters() if parameter.ndim < 2}
    assert spared == (set() if decay_all == "true" else flat)
    assert {value for name, value in decay.items() if name not in spared} == {0.5}
