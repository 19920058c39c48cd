"""Every network that a config can name is built again from its blueprint alone, after a trip through JSON."""

import json

import pytest
import torch

from fsr_lab.engine.build import build_model
from fsr_lab.export.blueprint import HUB, Blueprint
from fsr_lab.export.run import blueprint_of

SMALL = {
    "timm": "model.name=test_resnet", "torchvision": "model.name=squeezenet1_1", "wrn34_10": "model.widen_factor=1",
}  # fmt: skip
"""What makes each network small, where it is not its width."""


def rebuilt(cfg):
    """Return a config's network, and the one that its blueprint gives once it has the weights."""
    model = build_model(cfg).eval()
    blueprint = Blueprint.from_dict(json.loads(json.dumps(blueprint_of(cfg, model.backbone).as_dict())))
    again = blueprint.build(trust=["mylab"])  # the documentation's examples
    again.load_state_dict(model.state_dict())
    return model, again


def check_same(model, again, shape):
    x = torch.rand(2, *shape)
    with torch.no_grad():
        torch.manual_seed(5)  # of defences that draw at test time
        want = model(x)
        torch.manual_seed(5)
        assert torch.equal(again(x), want)


def test_every_defence_comes_back(defense_name, compose_config, toy):
    cfg = compose_config(*toy, f"defense={defense_name}", "model.normalize={mean: [0.4,0.5,0.6], std: [0.2,0.3,0.4]}")
    model, again = rebuilt(cfg)
    assert list(again.defenses) == list(model.defenses)
    assert [repr(each) for each in again.defenses.values()] == [repr(each) for each in model.defenses.values()]
    check_same(model, again, cfg.dataset.image_shape)


def test_every_backbone_comes_back(model_name, compose_config):
    if model_name == "torch_hub":
        return  # other people's code: see the next test
    sized = SMALL.get(model_name, "model.width=4")
    cfg = compose_config("dataset=cifar10", f"model={model_name}", sized, "defense=none")
    model, again = rebuilt(cfg)
    check_same(model, again, (3, 32, 32))


def test_a_hub_repository_has_no_blueprint_that_builds(compose_config):
    cfg = compose_config("dataset=cifar10", "model=torch_hub", "model.repository=owner/name", "model.name=entry")
    own = {"target": HUB, "arguments": {"repository": cfg.model.repository, "name": cfg.model.name}}
    plain = {"backbone": own, "defenses": {}, "image_shape": [3, 32, 32], "num_classes": 10, "layout": "nchw"}
    with pytest.raises(ValueError, match=r"refused to build a network by a torch.hub repository's code"):
        Blueprint.from_dict(plain | {"normalize": None}).build()


def test_several_sites_keep_their_own_options(compose_config):
    cfg = compose_config(
        "dataset=cifar10", "model=resnet18", "model.width=4", "defense=fsr",
        "defense.at={layer3: {tau: 0.5, width: 4}, layer4: {width: 8}}",
    )  # fmt: skip
    model, again = rebuilt(cfg)
    assert [defense.tau for defense in again.defenses.values()] == [0.5, 0.1]
    check_same(model, again, (3, 32, 32))


def test_a_pretrained_network_is_built_without_fetching(compose_config):
    cfg = compose_config(
        "dataset=cifar10", "model=timm", "model.name=test_resnet", "model.pretrained=true", "defense=none"
    )
    bare = build_model(compose_config("dataset=cifar10", "model=timm", "model.name=test_resnet", "defense=none"))
    assert blueprint_of(cfg, bare.backbone).backbone.arguments["pretrained"] is False
