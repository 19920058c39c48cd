"""The logits path as ONNX, and such a file as a network again."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from fsr_lab.core.files import write_atomically
from fsr_lab.export.network import Network
from fsr_lab.export.program import logits_program

GRAPH = "model.onnx"
IMAGES, LOGITS = "images", "logits"


def write(folder: Path, network: Network) -> str:
    """Write the graph, weights inside, for any number of images, and return the file's name.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        ValueError: a defence draws at test time.
    """
    random = [point for point, defense in network.model.defenses.items() if defense.eval_noise]
    if random:
        raise ValueError(
            f"the defence at {random[0]} draws at test time, and ONNX draws other numbers: nothing would tell a right "
            "export from a wrong one; export safetensors"
        )
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as err:
        raise ImportError(f"{err}; ONNX needs an extra: pip install 'fsr-lab[export]'") from err
    program = logits_program(network.model, network.blueprint.image_shape)
    with warnings.catch_warnings(), _hushed("onnxscript", "onnx_ir", "torch.onnx"):
        warnings.simplefilter("ignore")  # of the exporter, about itself
        made = torch.onnx.export(program, input_names=[IMAGES], output_names=[LOGITS], dynamo=True, verbose=False)
    if made is None:
        raise RuntimeError("torch.onnx.export gave no program; export the network as torch_export instead")
    content = made.model_proto.SerializeToString()
    write_atomically(folder / GRAPH, lambda stream: stream.write(content))
    return GRAPH


@contextmanager
def _hushed(*names: str) -> Iterator[None]:
    """Keep loggers to their errors, which would tell of every operation that they look at."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class OnnxNetwork(nn.Module):
    """Runs an ONNX graph by onnxruntime on the CPU: images (N, C, H, W) in [0, 1] to logits (N, K).

    It has no gradients: attacks that need none, such as Square and SPSA, are for it.

    Args:
        path: of the graph.

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: the file is no ONNX graph.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError as err:
            raise ImportError("running ONNX needs an extra: pip install 'fsr-lab[export]'") from err
        try:
            self._session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
        except Exception as err:  # its own classes, without a common base
            raise ValueError(f"{path} is no ONNX graph ({str(err).splitlines()[0]}); export or fetch it again") from err

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits.

        Raises:
            RuntimeError: a gradient is wanted.
        """
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("an ONNX network gives no gradients; attack it with square or spsa, or load safetensors")
        (logits,) = self._session.run([LOGITS], {IMAGES: x.detach().cpu().numpy()})
        return torch.from_numpy(logits).to(x.device)
