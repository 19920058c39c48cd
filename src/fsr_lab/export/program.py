"""The logits path alone, as a program of torch.export that needs none of our code.

What inference does not use, FSR's auxiliary head above all, is not in it.
"""

import copy
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind

from fsr_lab.core.files import write_atomically
from fsr_lab.export.network import Network

PROGRAM = "model.pt2"
KEPT = (InputKind.PARAMETER, InputKind.BUFFER)


def write(folder: Path, network: Network) -> str:
    """Write the program and return the file's name."""
    program = logits_program(network.model, network.blueprint.image_shape)
    write_atomically(folder / PROGRAM, lambda stream: torch.export.save(program, stream))
    return PROGRAM


def logits_program(model: nn.Module, image_shape: tuple[int, int, int]) -> ExportedProgram:
    """Return the program of a network's forward in eval mode, for any number of images.

    Args:
        model: maps (N, *image_shape) in [0, 1] to logits.
        image_shape: (C, H, W).
    """
    lean = copy.deepcopy(model).eval()
    for name in unused(_traced(lean, image_shape)):
        parent, _, leaf = name.rpartition(".")
        setattr(lean.get_submodule(parent), leaf, None)
    return _traced(lean, image_shape)


def unused(program: ExportedProgram) -> list[str]:
    """Return the parameters and buffers that no operation of a program reads."""
    inputs = (node for node in program.graph.nodes if node.op == "placeholder")
    specs = zip(program.graph_signature.input_specs, inputs, strict=True)
    return [str(spec.target) for spec, node in specs if spec.kind in KEPT and not node.users]


def _traced(model: nn.Module, image_shape: tuple[int, int, int]) -> ExportedProgram:
    # two images: of one, torch.export would take the batch's size for a constant
    example = (torch.zeros(2, *image_shape),)
    with torch.no_grad():
        return torch.export.export(model, example, dynamic_shapes=({0: Dim("batch")},))
