"""What every network of conf/model keeps."""

import inspect
from pathlib import Path

import pytest
import torch
from hydra.utils import get_class, get_method
from omegaconf import OmegaConf
from torch import Tensor, nn

from fsr_lab.engine.build import AROUND, POINTS, build_model
from fsr_lab.model.library_model import expand_declared
from fsr_lab.model.points import find_module, inspect_points

NARROW = {"width": 8, "widen_factor": 1}
"""What the wide networks are reduced to, where they can be: no test here is about their size."""
GIVEN = {
    "torch_hub": [
        f"model.repository={Path(__file__).parent / 'hub'}", "model.name=small",
        "model.options={num_classes:${dataset.num_classes},in_channels:${dataset.image_shape[0]}}",
    ],
}  # fmt: skip
"""What only the user can say."""


@pytest.fixture
def options(model_name, option_file):
    """Return what the YAML says, not resolved."""
    return OmegaConf.to_container(OmegaConf.load(option_file("model", model_name)), resolve=False)


@pytest.fixture
def defended_cfg(model_name, options, compose_config):
    """Return the config of the smallest form of the network, with FSR at its tap."""
    narrowed = [f"model.{key}={NARROW[key]}" for key in NARROW if key in options]
    given = GIVEN.get(model_name, [])
    return compose_config("dataset=cifar10", f"model={model_name}", *narrowed, *given, "defense=fsr")


@pytest.fixture
def cfg(defended_cfg):
    return OmegaConf.merge(defended_cfg, {"defense": {"at": None, "module": None}})


@pytest.fixture
def backbone(cfg):
    return build_model(cfg).backbone.eval()


def points_of(cfg, backbone):
    """Return {key: its points} as lists; null is a key that the model leaves unnamed."""
    named = {key: [cfg.model[key]] if isinstance(cfg.model[key], str) else cfg.model[key] for key in POINTS}
    return {
        key: [name for point in points for name in expand_declared(backbone, point)]
        for key, points in named.items() if points is not None
    }  # fmt: skip


def test_maps_images_to_logits(backbone):
    x = torch.rand(2, 3, 32, 32)
    logits = backbone(x)
    assert type(logits) is Tensor
    assert logits.shape == (2, 10)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    assert torch.equal(backbone(x), logits)


def test_takes_the_datas_channels_and_classes(cfg):
    gray = OmegaConf.merge(cfg, {"dataset": {"image_shape": [1, 32, 32], "num_classes": 7}})
    assert build_model(gray).eval()(torch.rand(2, 1, 32, 32)).shape == (2, 7)


def test_batch_norm_or_not_a_sample_is_judged_alone(backbone):
    x = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(backbone(x)[1:2], backbone(x[1:2]), atol=1e-5, rtol=1e-5)


def test_every_neutral_point_exists_and_runs_once(cfg, backbone):
    for key, points in points_of(cfg, backbone).items():
        assert points, key
        assert len(set(points)) == len(points)
        shapes = inspect_points(backbone, points, (3, 32, 32))
        assert list(shapes) == points
        assert all(min(shape) >= 1 for shape in shapes.values())


def test_points_are_named_in_order_of_depth(cfg, backbone):
    ran = []
    named = {point for points in points_of(cfg, backbone).values() for point in points}
    for point in named:
        find_module(backbone, point).register_forward_hook(lambda *_, point=point: ran.append(point))
    backbone(torch.rand(1, 3, 32, 32))
    for key, points in points_of(cfg, backbone).items():
        assert [point for point in ran if point in points] == points, key


def test_convs_are_convolutions_and_activations_are_not_negative(cfg, backbone):
    points = points_of(cfg, backbone)
    assert all(isinstance(find_module(backbone, point), nn.Conv2d) for point in points.get("convs", []))
    seen = {}
    for point in points.get("activations", []):
        module = find_module(backbone, point)
        module.register_forward_hook(lambda _, __, output, point=point: seen.update({point: output.min()}))
    backbone(torch.rand(1, 3, 32, 32))
    assert set(seen) == set(points.get("activations", []))
    assert all(value >= 0 for value in seen.values())


def test_every_parameter_gets_a_gradient(backbone):
    backbone.train()(torch.rand(4, 3, 32, 32)).logsumexp(1).sum().backward()
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is None] == []


def test_defended_at_its_tap_or_asks_for_one(defended_cfg):
    if defended_cfg.model.tap is None:
        with pytest.raises(ValueError, match=r"names no layer for the defence; give defense\.at=LAYER, such as one of"):
            build_model(defended_cfg)
        return
    model = build_model(defended_cfg).eval()
    out = model.forward_with_aux(torch.rand(2, 3, 32, 32))
    assert out.logits.shape == (2, 10)
    assert list(out.aux) == list(model.defenses)
    assert len(out.aux) == 1


def test_normalisation_is_part_of_the_network(cfg, backbone):
    mean, std, x = [0.1, 0.2, 0.3], [0.5, 0.25, 2.0], torch.rand(2, 3, 32, 32)
    normalised = OmegaConf.merge(cfg, {"model": {"normalize": {"mean": mean, "std": std}}})
    wanted = backbone((x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))
    model = build_model(normalised).eval()
    torch.testing.assert_close(model(x), wanted)
    assert list(model.backbone.state_dict()) == list(backbone.state_dict())


def test_yaml_and_constructor_have_the_same_defaults(options):
    target = options.pop("_target_")
    build = get_class(target) if target.rpartition(".")[2][0].isupper() else get_method(target)
    parameters = inspect.signature(build).parameters
    given = {key: value for key, value in options.items() if key not in (*POINTS, *AROUND)}
    assert set(given) == set(parameters)
    required = {key for key, parameter in parameters.items() if parameter.default is parameter.empty}
    fixed = {key: value for key, value in given.items() if key not in required and not str(value).startswith("${")}
    assert fixed == {key: parameters[key].default for key in fixed}
