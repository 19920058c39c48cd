"""All weights as one file of safetensors, which nothing can run."""

from pathlib import Path

from fsr_lab.core.files import write_atomically
from fsr_lab.export.network import Network

WEIGHTS = "model.safetensors"


def write(folder: Path, network: Network) -> str:
    """Write the weights and return the file's name; it holds the auxiliary heads, too: training may go on.

    Raises:
        ImportError: safetensors are not installed.
    """
    try:
        from safetensors.torch import save
    except ImportError as err:
        raise ImportError("this format needs an extra: pip install 'fsr-lab[export]'") from err
    content = save(network.state, metadata={"format": "pt"})
    write_atomically(folder / WEIGHTS, lambda stream: stream.write(content))
    return WEIGHTS
