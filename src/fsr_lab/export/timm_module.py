"""A module that registers the network with timm, by timm's own conventions."""

from pathlib import Path

from torch import nn

from fsr_lab.core.files import write_text
from fsr_lab.export import safetensors_file, source
from fsr_lab.export.network import Network


def write(folder: Path, network: Network) -> str:
    """Write the weights and `NAME.py`: after importing it, `timm.create_model("NAME", pretrained=True)` knows it.

    Raises:
        ImportError: timm or safetensors are not installed.
        ValueError: timm has a network of that name.
    """
    try:
        import timm
    except ImportError as err:
        raise ImportError("timm networks need an extra: pip install 'fsr-lab[timm]'") from err
    if timm.is_model(network.name):
        raise ValueError(f"timm has a network {network.name!r} of its own; give name=ANOTHER")
    write_text(folder / f"{network.name}.py", _module(network))
    return safetensors_file.write(folder, network)


def _module(network: Network) -> str:
    modules = dict(network.model.named_modules())
    heads = tuple(
        name for name, module in modules.items()
        if isinstance(module, nn.Linear) and module.out_features == network.blueprint.num_classes
    )  # fmt: skip
    stem = next(name for name, module in modules.items() if isinstance(module, nn.Conv2d | nn.Linear))
    channels = network.blueprint.image_shape[0]
    return f'''"""Registers {network.name} with timm: import this, then `timm.create_model` knows it."""

from pathlib import Path

{source.imports(network.blueprint)}
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

default_cfgs = generate_default_cfgs({{
    "{network.name}": {{
        "file": str(Path(__file__).with_name("{safetensors_file.WEIGHTS}")),
        "num_classes": {network.blueprint.num_classes},
        "input_size": {network.blueprint.image_shape!r},
        "fixed_input_size": False,
        "crop_pct": 1.0,
        "mean": {(0.0,) * channels!r},  # images in [0, 1]: what normalises is a part of the network
        "std": {(1.0,) * channels!r},
        "first_conv": {stem!r},
        "classifier": {heads!r},
        "license": {network.licence.lower()!r},
    }},
}})


@register_model
def {network.name}(pretrained=False, **kwargs):
    """{network.headline}: images in [0, 1] to logits."""
    return build_model_with_cfg(_network, "{network.name}", pretrained, **kwargs)


def _network(num_classes={network.blueprint.num_classes}, in_chans={channels}):
    if in_chans != {channels}:
        raise ValueError(f"{network.name} takes images of {channels} channels, not {{in_chans}}")
{source.body(network.blueprint)}
'''
