import pytest
import torch
from torch import nn

from fsr_lab.core.crafting import REFERENCE, Policy, crafting, judging
from fsr_lab.defense.fsr import FSR
from fsr_lab.model.defended import attach
from fsr_lab.model.tiny_cnn import TinyCNN

FAST = Policy(channels_last=True, fold=True)
BF16 = Policy(dtype="bfloat16", channels_last=True, fold=True)
POLICIES = [REFERENCE, Policy(channels_last=True), Policy(fold=True), FAST, Policy(dtype="bfloat16"), BF16]


def snapshot(model):
    """Return everything about a network that an attack could leave behind."""
    return {
        "modes": [module.training for module in model.modules()],
        "objects": [id(parameter) for parameter in model.parameters()],
        "owners": [[(name, id(value)) for name, value in module._parameters.items()] for module in model.modules()],
        "values": [value.detach().clone() for value in (*model.parameters(), *model.buffers())],
        "versions": [value._version for value in (*model.parameters(), *model.buffers())],
        "strides": [value.stride() for value in model.parameters()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "grads": [parameter.grad for parameter in model.parameters()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
    }


def agree(left, right):
    assert left.keys() == right.keys()
    for key, value in left.items():
        if key == "values":
            assert all(torch.equal(a, b) for a, b in zip(value, right[key], strict=True)), key
        elif key == "grads":
            assert all(a is b for a, b in zip(value, right[key], strict=True)), key
        else:
            assert value == right[key], key


@pytest.fixture
def mixed(classifier, batch):
    """A network in training, one BatchNorm of it frozen, one layer not trained, gradients not yet used."""
    classifier.train()[1].eval()
    classifier[8].requires_grad_(False)
    classifier(batch[0]).logsumexp(1).sum().backward()
    return classifier


@pytest.fixture
def defended():
    return attach(TinyCNN(num_classes=4, batch_norm=True), {"block2": FSR}, (3, 8, 8), 4)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_everything_is_put_back(policy, mixed, batch):
    before = snapshot(mixed)
    with crafting(mixed, policy, example=batch[0]) as attacked:
        assert not any(module.training for module in mixed.modules())
        assert not any(parameter.requires_grad for parameter in mixed.parameters())
        x = batch[0].clone().requires_grad_()
        attacked(x).sum().backward()
        assert x.grad.any()
    agree(snapshot(mixed), before)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_everything_is_put_back_after_an_exception(policy, mixed, batch):
    before = snapshot(mixed)
    with pytest.raises(ArithmeticError, match="in an attack"), crafting(mixed, policy, example=batch[0]):
        raise ArithmeticError("in an attack")
    agree(snapshot(mixed), before)
    assert not torch.is_autocast_enabled("cpu")


def test_everything_is_put_back_when_the_example_does_not_fit(mixed):
    before = snapshot(mixed)
    with pytest.raises(RuntimeError, match="channels"), crafting(mixed, FAST, example=torch.rand(2, 5, 8, 8)):
        raise AssertionError("the block must not run")
    agree(snapshot(mixed), before)


def test_crafting_nests(mixed, batch):
    before = snapshot(mixed)
    with crafting(mixed, FAST, example=batch[0]), crafting(mixed, BF16, example=batch[0]), judging(mixed):
        pass
    agree(snapshot(mixed), before)


def test_a_train_method_that_lies_is_not_asked(batch):
    class AlwaysEval(nn.BatchNorm2d):
        def train(self, mode=True):
            return super().train(False)

    net = nn.Sequential(nn.Conv2d(3, 4, 3), AlwaysEval(4))
    net[1].training = True
    with crafting(net):
        assert not net[1].training
    assert net[1].training


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("policy", [Policy(fold=True), FAST], ids=str)
def test_a_rewritten_network_computes_the_same(policy, dtype, tolerance, classifier, batch):
    net, x = classifier.to(dtype), batch[0].to(dtype).requires_grad_()
    found = {}
    for key, way in (("reference", REFERENCE), ("fast", policy)):
        with crafting(net, way, example=x) as attacked:
            logits = attacked(x)
            (gradient,) = torch.autograd.grad(logits.logsumexp(1).sum(), x)
        found[key] = logits.detach(), gradient
    assert found["fast"][0].dtype == dtype
    for ours, reference in zip(found["fast"], found["reference"], strict=True):
        torch.testing.assert_close(ours, reference, atol=tolerance, rtol=tolerance)


def test_bfloat16_computes_in_bfloat16_and_stays_near(classifier, batch):
    net, x = classifier, batch[0]
    kinds = []
    net[3].register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
    with judging(net) as deployed:
        reference = deployed(x)
    with crafting(net, BF16, example=x) as attacked:
        assert net[3].weight.dtype == torch.bfloat16
        logits = attacked(x)
    assert kinds[0] == torch.float32
    assert kinds[-1] == torch.bfloat16
    assert net[3].weight.dtype == torch.float32
    # eight bits of mantissa, three layers
    torch.testing.assert_close(logits.float(), reference, atol=0.05, rtol=0.05)
    assert not torch.equal(logits.float(), reference)


def test_channels_last_reorders_the_weights_for_the_block(classifier):
    with crafting(classifier, Policy(channels_last=True)):
        assert classifier[3].weight.is_contiguous(memory_format=torch.channels_last)
    assert classifier[3].weight.is_contiguous()


def test_autocast_of_the_surroundings_is_not_inherited(classifier, batch):
    with crafting(classifier) as attacked:
        wanted = attacked(batch[0])
    with torch.autocast("cpu", torch.bfloat16):
        with crafting(classifier) as attacked:
            found = attacked(batch[0])
        with judging(classifier) as deployed:
            judged = deployed(batch[0])
        assert classifier.eval()(batch[0]).dtype == torch.bfloat16
    assert found.dtype == judged.dtype == torch.float32
    assert torch.equal(found, wanted)
    assert torch.equal(judged, wanted)


def test_gradients_are_on_whatever_the_surroundings_say(classifier, batch):
    for surroundings in (torch.no_grad(), torch.inference_mode()):
        with surroundings, crafting(classifier) as attacked:
            x = batch[0].clone().requires_grad_()
            assert torch.autograd.grad(attacked(x).sum(), x)[0].any()


def test_the_judge_takes_no_gradients_and_moves_no_statistics(mixed, batch):
    before = snapshot(mixed)
    with judging(mixed) as deployed:
        assert not deployed(batch[0].requires_grad_()).requires_grad
        assert not mixed.training
    agree(snapshot(mixed), before)


def test_a_callable_passes_through(batch):
    def model(x):
        return x.flatten(1)

    for policy in POLICIES:
        with crafting(model, policy, example=batch[0]) as attacked:
            assert attacked is model
    with judging(model) as deployed:
        assert deployed is model


def test_noise_makes_fsr_random_and_moves_no_batch_norm(defended, batch):
    defended.train()
    before = snapshot(defended)
    with crafting(defended, noise=True) as attacked:
        assert [type(module) for module in defended.modules() if module.training] == [FSR]
        assert not torch.equal(attacked(batch[0]), attacked(batch[0]))
    agree(snapshot(defended), before)
    with crafting(defended) as attacked:
        assert torch.equal(attacked(batch[0]), attacked(batch[0]))
    agree(snapshot(defended), before)


def test_an_unknown_dtype_names_its_neighbours():
    with pytest.raises(ValueError, match=r"no crafting dtype named 'float16'; close names: \['bfloat16'"):
        Policy(dtype="float16")


def test_folding_without_an_example_is_refused(mixed):
    before = snapshot(mixed)
    with (
        pytest.raises(ValueError, match=r"needs an example batch: crafting\(model, policy, example=x\)"),
        crafting(mixed, FAST),
    ):
        raise AssertionError("the block must not run")
    agree(snapshot(mixed), before)
