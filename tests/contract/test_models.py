"""What every network of conf/model keeps."""

import inspect

import pytest
import torch
from hydra.utils import get_class, get_method
from omegaconf import OmegaConf
from torch import Tensor, nn

from fsr_lab.engine.build import FUNCTIONAL, POINTS, build_model
from fsr_lab.model.points import find_module, inspect_points


@pytest.fixture
def cfg(model_name, compose_config):
    return compose_config("dataset=cifar10", f"model={model_name}", "defense=none")


@pytest.fixture
def backbone(cfg):
    return build_model(cfg).backbone.eval()


def points_of(cfg):
    """Return {key: its points}, as lists."""
    return {key: [cfg.model[key]] if key == "tap" else list(cfg.model[key]) for key in POINTS}


def test_maps_images_to_logits(backbone):
    x = torch.rand(2, 3, 32, 32)
    logits = backbone(x)
    assert type(logits) is Tensor
    assert logits.shape == (2, 10)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    assert torch.equal(backbone(x), logits)


def test_takes_the_datas_channels_and_classes(model_name, compose_config):
    shape = ["dataset.image_shape=[1,32,32]", "dataset.num_classes=7"]
    cfg = compose_config("dataset=cifar10", f"model={model_name}", "defense=none", *shape)
    assert build_model(cfg).eval()(torch.rand(2, 1, 32, 32)).shape == (2, 7)


def test_batch_norm_or_not_a_sample_is_judged_alone(backbone):
    x = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(backbone(x)[1:2], backbone(x[1:2]), atol=1e-5, rtol=1e-5)


def test_every_neutral_point_exists_and_runs_once(cfg, backbone):
    for key, points in points_of(cfg).items():
        assert points, key
        assert len(set(points)) == len(points)
        shapes = inspect_points(backbone, points, (3, 32, 32))
        assert list(shapes) == points
        assert all(min(shape) >= 1 for shape in shapes.values())


def test_points_are_named_in_order_of_depth(cfg, backbone):
    ran = []
    named = {point for points in points_of(cfg).values() for point in points}
    for point in named:
        find_module(backbone, point).register_forward_hook(lambda *_, point=point: ran.append(point))
    backbone(torch.rand(1, 3, 32, 32))
    for key, points in points_of(cfg).items():
        assert [point for point in ran if point in points] == points, key


def test_convs_are_convolutions_and_activations_are_not_negative(cfg, backbone):
    assert all(isinstance(find_module(backbone, point), nn.Conv2d) for point in cfg.model.convs)
    seen = {}
    for point in cfg.model.activations:
        module = find_module(backbone, point)
        module.register_forward_hook(lambda _, __, output, point=point: seen.update({point: output.min()}))
    backbone(torch.rand(1, 3, 32, 32))
    assert set(seen) == set(cfg.model.activations)
    assert min(seen.values()) >= 0


def test_every_parameter_gets_a_gradient(backbone):
    backbone.train()(torch.rand(4, 3, 32, 32)).logsumexp(1).sum().backward()
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is None] == []


def test_defended_at_its_tap(model_name, compose_config):
    model = build_model(compose_config("dataset=cifar10", f"model={model_name}", "defense=fsr")).eval()
    out = model.forward_with_aux(torch.rand(2, 3, 32, 32))
    assert out.logits.shape == (2, 10)
    assert list(out.aux) == list(model.defenses)
    assert len(out.aux) == 1


def test_yaml_and_constructor_have_the_same_defaults(cfg, model_name):
    raw = OmegaConf.to_container(cfg.model, resolve=False)
    target = raw.pop("_target_")
    build = get_class(target) if target.rpartition(".")[2][0].isupper() else get_method(target)
    parameters = inspect.signature(build).parameters
    given = {key: value for key, value in raw.items() if key not in (*POINTS, FUNCTIONAL)}
    assert set(given) == set(parameters)
    fixed = {key: value for key, value in given.items() if not str(value).startswith("${")}
    assert fixed == {key: parameters[key].default for key in fixed}
