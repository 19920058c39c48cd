"""What makes training fast changes nothing of what is computed, beyond the rounding of its number format."""

import copy
import pickle

import pytest
import torch
from torch._dynamo.utils import counters

from fsr_lab.core.crafting import judging
from fsr_lab.core.types import Progress
from fsr_lab.engine.build import bare_step, build_model, build_module, build_strategy, compile_model
from fsr_lab.engine.module import total

REFERENCE = ("channels_last=false", "crafting@crafting.train=reference", "compile=none")
EXACT = {
    "channels-last": ("channels_last=true", *REFERENCE[1:]),
    "folded": (REFERENCE[0], "crafting@crafting.train=fast", REFERENCE[2]),
    "compiled": (*REFERENCE[:2], "compile=aot_eager"),
    "all": ("channels_last=true", "crafting@crafting.train=fast", "compile=aot_eager"),
}
"""Switches that only reorder what is computed: in float64 the step is the same to ten digits."""
PAIRS = [("at", "fsr"), ("trades", "fsr"), ("mart", "cas"), ("at", "cifs"), ("at", "sap"), ("alp", "kwta")]


@pytest.fixture
def double():
    """Let what a test builds be in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def nothing_compiled():
    torch.compiler.reset()  # networks of other tests count towards its limit of graphs
    counters.clear()


@pytest.fixture
def images():
    return torch.rand(8, 3, 8, 8), torch.arange(8) % 4


def confident(model):
    """Let a network's logits lie as far apart as training would: KL of an untrained one is below eight bits."""
    with torch.no_grad():
        model.backbone.fc.weight.mul_(20)
    return model


def step(cfg, x, y, autocast=False):
    """Return one training step's images, losses by name and gradients by name."""
    module = build_module(cfg, build_model(cfg))
    module.model.train()
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = module.training_output(x, y, Progress(epoch=9, max_epochs=10, step=0))
        total(out).backward()
    return out, {name: parameter.grad for name, parameter in module.model.named_parameters()}


@pytest.mark.parametrize(("strategy", "defense"), PAIRS)
@pytest.mark.parametrize(
    "switch", [pytest.param(name, marks=[pytest.mark.slow] if name == "compiled" else []) for name in EXACT]
)
def test_a_step_is_the_same_to_ten_digits(
    switch, strategy, defense, compose_config, toy, double, nothing_compiled, images
):
    base = (*toy, f"strategy={strategy}", f"defense={defense}")
    out, gradients = step(compose_config(*base, *EXACT[switch]), *images)
    wanted, wanted_gradients = step(compose_config(*base, *REFERENCE), *images)
    torch.testing.assert_close(out.x_adv, wanted.x_adv, atol=1e-10, rtol=0)
    torch.testing.assert_close(out.losses, wanted.losses, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(gradients, wanted_gradients, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("strategy", "defense"), PAIRS)
def test_bfloat16_rounds_and_no_more(strategy, defense, compose_config, toy, images):
    cfg = compose_config(*toy, f"strategy={strategy}", f"defense={defense}")
    out, gradients = step(cfg, *images, autocast=True)
    wanted, wanted_gradients = step(cfg, *images)
    assert torch.equal(out.x_adv, wanted.x_adv)  # crafting has a precision of its own
    for name, value in out.losses.items():
        assert value.dtype == torch.float32
        # eight bits of mantissa, through some ten layers
        torch.testing.assert_close(value, wanted.losses[name], atol=0.02, rtol=0.05)
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32, name
    flat, wanted_flat = (
        torch.cat([gradient.flatten() for gradient in found.values()]) for found in (gradients, wanted_gradients)
    )
    assert torch.cosine_similarity(flat, wanted_flat, dim=0) > 0.95


@pytest.mark.parametrize(("strategy", "defense"), PAIRS)
def test_images_crafted_in_bfloat16_are_as_strong(strategy, defense, compose_config, toy, images):
    raised = {}
    for precision in ("bf16-mixed", "32-true"):
        cfg = compose_config(*toy, f"strategy={strategy}", f"defense={defense}", f"precision={precision}")
        attack = build_strategy(cfg).attack
        assert attack.policy.dtype == ("bfloat16" if precision == "bf16-mixed" else "float32")
        model = confident(build_model(cfg))
        torch.manual_seed(3)
        x_adv = attack(model, *images)
        torch.manual_seed(3)  # what a defence draws while the images are judged
        with judging(model) as deployed:
            prepared = attack.objective.prepare(deployed, *images)
            clean, crafted = (attack.objective(deployed, x, images[1], prepared).mean() for x in (images[0], x_adv))
        raised[precision] = float(crafted - clean)
    assert raised["bf16-mixed"] > 0.95 * raised["32-true"] > 0


def test_steps_share_their_graphs_whatever_the_weights_and_the_batch(compose_config, toy, nothing_compiled):
    # crafting and training, for the full batch and then for any: folded weights are new at every step
    step = bare_step(compose_config(*toy, "strategy=trades", "defense=fsr", "compile=aot_eager"))
    for count in (8, 8, 8, 5, 7, 6):
        step(torch.rand(count, 3, 8, 8), torch.arange(count) % 4)
    assert counters["stats"]["unique_graphs"] == 4
    assert not counters["graph_break"]


def test_what_is_judged_is_not_compiled(compose_config, toy, nothing_compiled, images):
    model = build_model(compose_config(*toy)).eval()
    compile_model(compose_config(*toy, "compile=aot_eager"), model)
    with torch.no_grad():
        model(images[0])
        model.forward_with_aux(*images)
    assert not counters["stats"]
    model(images[0])
    assert counters["stats"]["unique_graphs"] == 1


def test_a_copy_of_a_compiled_network_is_its_own(compose_config, toy, nothing_compiled, images):
    model = build_model(compose_config(*toy)).eval()
    keys = list(model.state_dict())
    compile_model(compose_config(*toy, "compile=aot_eager"), model)
    wanted = model(images[0])
    assert list(model.state_dict()) == keys
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(images[0]), wanted)
        for parameter in other.parameters():
            torch.nn.init.zeros_(parameter)
        assert not torch.allclose(other(images[0]), wanted)
    torch.testing.assert_close(model(images[0]), wanted)


@pytest.mark.slow
def test_networks_of_one_sweep_do_not_use_up_the_compilers_limit(compose_config, toy, nothing_compiled, images):
    # eight graphs of one function are Dynamo's limit, after which it goes on eagerly and says so once
    cfg = compose_config(*toy, "compile=aot_eager")
    for _ in range(10):
        counters.clear()
        model = build_model(cfg)
        compile_model(cfg, model)
        model(images[0])
        assert counters["stats"]["unique_graphs"] == 1


PRESETS = {
    "cpu": ("cpu", "32-true", "float32", None),
    "cpu_bf16": ("cpu", "bf16-mixed", "bfloat16", None),
    "gpu": ("gpu", "bf16-mixed", "bfloat16", "inductor"),
    "ddp": ("auto", "32-true", "float32", None),
}


@pytest.mark.parametrize("trainer", PRESETS)
def test_a_trainer_brings_its_precision_and_compilation(trainer, compose_config):
    cfg = compose_config(f"trainer={trainer}")
    found = (cfg.trainer.accelerator, cfg.trainer.precision, cfg.strategy.attack.policy.dtype, cfg.compile.backend)
    assert found == PRESETS[trainer]
    assert cfg.val_attack.policy.dtype == PRESETS[trainer][2]


def test_the_command_line_has_the_last_word_on_a_preset(compose_config):
    cfg = compose_config("trainer=gpu", "precision=32-true", "compile=none")
    assert (cfg.trainer.precision, cfg.strategy.attack.policy.dtype, cfg.compile.backend) == (
        "32-true",
        "float32",
        None,
    )


def test_a_table_is_attacked_in_the_reference_precision_whatever_training_was(compose_config):
    attacks = compose_config("trainer=gpu").evaluation.attacks
    assert {attack.policy.dtype for attack in attacks.values()} == {"float32"}
