"""A folder that torch.hub loads, from this disk or, pushed to GitHub, by its owner/name."""

from pathlib import Path
from textwrap import indent

from fsr_lab.core.files import write_text
from fsr_lab.export import safetensors_file, source
from fsr_lab.export.network import Network

HUBCONF = "hubconf.py"


def write(folder: Path, network: Network) -> str:
    """Write the weights and a `hubconf.py` whose one entry point is the network's name.

    Raises:
        ImportError: safetensors are not installed.
    """
    write_text(folder / HUBCONF, _hubconf(network))
    return safetensors_file.write(folder, network)


def _hubconf(network: Network) -> str:
    # imports stand in the functions: torch.hub takes every name of the module for an entry point
    num_classes = network.blueprint.num_classes
    return f'''"""torch.hub.load("OWNER/REPOSITORY", "{network.name}"), or with this folder and source="local"."""

dependencies = ["torch", "fsr_lab", "safetensors"]


def {network.name}(pretrained=True, num_classes={num_classes}):
    """{network.headline}: images in [0, 1] to logits, in eval mode."""
    if not pretrained:
        return _fresh(num_classes)
    if num_classes != {num_classes}:
        raise ValueError(f"these weights are of {num_classes} classes, not {{num_classes}}; set pretrained=False")
    from pathlib import Path

    from fsr_lab import load

    return load(Path(__file__).parent)


def _fresh(num_classes):
{indent(source.imports(network.blueprint), "    ")}

{source.body(network.blueprint)}
'''
