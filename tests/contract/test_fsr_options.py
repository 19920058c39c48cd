"""Every ablation of FSR trains a defended network, and keeps what defences keep in eval mode."""

import copy

import pytest
import torch

from fsr_lab.core.losses import cross_entropy, kl
from fsr_lab.core.types import FeatureShape, Progress
from fsr_lab.defense.fsr import FSR
from fsr_lab.engine.build import build_model, build_module, build_strategy
from fsr_lab.strategy.base import Strategy

ABLATIONS = {
    "wo_sep": {"use_sep": False},
    "wo_rec": {"use_rec": False},
    "capacity_control": {"use_sep": False, "lambda_rec": 0},
    "deep_supervision": {"use_rec": False, "mask": "ones", "wrong": "none"},
    "without_l_sep": {"lambda_sep": 0},
    "gumbel_literal": {"mask": "gumbel_literal"},
    "sigmoid": {"mask": "sigmoid"},
    "tempered": {"mask": "tempered"},
    "hard_st": {"mask": "hard_st"},
    "gumbel_st": {"mask": "gumbel_st"},
    "random": {"mask": "random"},
    "fixed_random": {"mask": "fixed_random"},
    "magnitude": {"mask": "magnitude"},
    "inverse_magnitude": {"mask": "inverse_magnitude"},
    "attribution": {"mask": "attribution"},
    "attribution_mlp": {"mask": "attribution", "aux_hidden": 8},
    "zeros": {"mask": "zeros"},
    "eval_sigmoid": {"eval_mask": "sigmoid"},
    "eval_hard": {"eval_mask": "hard"},
    "eval_mc": {"eval_mask": "mc", "mc_samples": 3},
    "channel": {"granularity": "channel"},
    "spatial": {"granularity": "spatial"},
    "spatial_magnitude": {"mask": "magnitude", "granularity": "spatial"},
    "wrong_aux": {"wrong": "aux"},
    "wrong_random": {"wrong": "random"},
    "wrong_least_likely": {"wrong": "least_likely"},
    "wrong_uniform": {"wrong": "uniform"},
    "wrong_none": {"wrong": "none"},
    "criterion": {"heads": "criterion"},
    "detach_f": {"detach_f_for_aux": True},
    "detach_mask": {"detach_mask_in_rec": True},
    "detach_both": {"detach_f_for_aux": True, "detach_mask_in_rec": True},
    "detach_f_wo_sep": {"detach_f_for_aux": True, "use_sep": False},
}
COMPILED = ("gumbel_literal", "hard_st", "magnitude", "attribution_mlp", "eval_mc", "channel")
"""Beside those that have a YAML, which tests/contract/test_defenses.py compiles."""
START = Progress(epoch=0, max_epochs=1, step=0)


@pytest.fixture
def cfg(compose_config, toy):
    """Return the function that gives a toy run under options of FSR; two steps of crafting will do."""
    composed = compose_config(*toy, "defense=fsr", "strategy.attack.steps=2")

    def under(**options):
        changed = copy.deepcopy(composed)
        changed.defense.module.update(options)
        return changed

    return under


class Compared(Strategy):
    """Clean and adversarial images, as TRADES has them."""

    needs_clean = True

    def criterion(self, adv, clean, y):
        return {"ce": cross_entropy(clean, y).mean(), "kl": 6 * kl(clean, adv).mean()}


def idle(model, losses):
    """Return the parameters that a loss does not reach."""
    model.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return [name for name, g in gradients.items() if g is None or not g.isfinite().all() or not g.any()]


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_trains_every_parameter_it_has(name, cfg, batch):
    run = cfg(**ABLATIONS[name])
    model = build_model(run).train()
    out = build_strategy(run)(model, *batch, START)
    assert all(value.shape == () and value.isfinite() for value in out.losses.values())
    wanted = {"ce", "block2/sep", "block2/rec"}
    wanted -= {"block2/sep"} if "use_sep" in ABLATIONS[name] else set()
    wanted -= {"block2/rec"} if "use_rec" in ABLATIONS[name] else set()
    assert set(out.losses) == wanted
    head = {n for n, _ in model.named_parameters() if "aux_head" in n}
    assert set(idle(model, out.losses)) == (head if name == "capacity_control" else set())


@pytest.mark.parametrize("option", [{"loss_on": "clean"}, {"loss_on": "both"}, {"heads": "criterion"}])
@pytest.mark.parametrize("ablation", ["gumbel_literal", "wo_sep", "wo_rec", "wrong_random"])
def test_every_ablation_that_reads_clean_images_trains_every_parameter(option, ablation, cfg, batch):
    run = cfg(**option, **ABLATIONS[ablation])
    model = build_model(run).train()
    assert model.needs_clean == ("loss_on" in option)
    out = Compared(attack=build_strategy(run).attack)(model, *batch, START)
    assert all(value.isfinite() for value in out.losses.values())
    assert idle(model, out.losses) == []


@pytest.mark.parametrize("loss_on", ["clean", "both"])
def test_a_strategy_without_clean_images_is_refused(loss_on, cfg):
    run = cfg(loss_on=loss_on)
    with pytest.raises(ValueError, match="a defence's loss reads clean images, and AT forwards none") as caught:
        build_module(run, build_model(run))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_is_deterministic_when_deployed_and_copies(name, cfg, batch):
    x = batch[0]
    model = build_model(cfg(**ABLATIONS[name]))
    model.train().forward_with_aux(*batch)
    model.eval()
    before = torch.get_rng_state()
    wanted = model(x)
    assert torch.equal(model(x), wanted)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(model.forward_with_aux(*batch).logits, wanted)
    assert torch.equal(copy.deepcopy(model)(x), wanted)
    again = build_model(cfg(**ABLATIONS[name])).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), wanted)


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.slow
def test_ablations_compile_to_one_graph(name, compiled):
    defense, features, y = compiled(**ABLATIONS[name])
    wanted = defense.eval()(features, y)
    found = torch.compile(defense, fullgraph=True, backend="aot_eager")(features, y)
    torch.testing.assert_close(found.features, wanted.features, atol=1e-5, rtol=1e-5)
    assert list(found.aux) == list(wanted.aux)
    for key, value in wanted.aux.items():
        torch.testing.assert_close(found.aux[key], value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{"mask": "gumbel_literal"}, {"mask": "random"}, ABLATIONS["detach_both"]])
@pytest.mark.slow
def test_noise_and_stopped_gradients_compile_to_one_graph(options, compiled):
    defense, features, y = compiled(**options)
    run = torch.compile(defense.train(), fullgraph=True, backend="aot_eager")
    first, second = (run(features, y).aux["mask"] for _ in range(2))
    assert first.isfinite().all()
    assert not torch.equal(first, second)


@pytest.fixture
def compiled():
    """Return the function that builds FSR with features and labels for it, nothing compiled before."""
    torch._dynamo.reset()

    def built(**options):
        defense = FSR(FeatureShape(6, 4, 4), 4, width=8, **options)
        return defense, torch.randn(4, 6, 4, 4), torch.arange(4)

    return built


def test_several_sites_have_options_of_their_own(compose_config, toy, batch):
    at = "{block1: {mask: magnitude, wrong: none}, block2: {granularity: channel}}"
    model = build_model(compose_config(*toy, f"defense.at={at}"))
    masks = [defense.mask for defense in model.defenses.values()]
    assert masks == ["magnitude", "gumbel"]
    terms = model.auxiliary_losses(model.forward_with_aux(*batch), batch[1], criterion=lambda *_: {})
    assert list(terms) == ["block1/sep", "block1/rec", "block2/sep", "block2/rec"]
