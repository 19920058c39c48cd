"""An export, from this disk or from the Hugging Face hub, as a network again."""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fsr_lab.core.hashing import state_hash
from fsr_lab.engine.safe_reading import read_safely
from fsr_lab.export.bundle import CONFIG, Bundle

REPOSITORY = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def load(place: str | Path, *, sha256: str | None = None, trust: Sequence[str] = ()) -> nn.Module:
    """Load what `fsr export` wrote, in whatever format, every file held against its hash; no code in it is run.

    A network that comes back from weights is a `DefendedModel`; one from a program or a graph maps images to logits
    and knows nothing else.

    Args:
        place: the export's folder, or "owner/name" on the Hugging Face hub, with a revision as "owner/name@v1".
        sha256: the export's hash, as `fsr export` and the model card tell it. Without it the files are held against
            each other alone: whoever changed all of them is not noticed.
        trust: packages beside fsr-lab whose constructors the network may be built by.

    Returns:
        Images (N, C, H, W) in [0, 1] to logits (N, K), in eval mode, on the CPU.

    Raises:
        ValueError: there is no export, it is of a newer format, a hash differs, a constructor is not ours, or a program
            of torch.export came without a hash: reading one can run code.
        ImportError: the format's package is not installed.
        OSError: the hub does not answer, or has no such network.

    Example:
        >>> model = fsr_lab.load("runs/train/mine/export/safetensors")
    """
    folder = _folder(place)
    bundle = Bundle.read(folder, sha256)
    path = folder / bundle.weights_file
    if bundle.format == "onnx":
        from fsr_lab.export.onnx_file import OnnxNetwork  # torch.onnx, which nothing else needs

        return OnnxNetwork(path).eval()
    if bundle.format == "torch_export":
        return _program(path, sha256)
    state = read_safely(path)
    if bundle.format == "robustbench":
        from fsr_lab.export import robustbench

        state = robustbench.unwrapped(state)
    return _filled(bundle, state, path, trust)


def _folder(place: str | Path) -> Path:
    folder = Path(place)
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ValueError(f"{place} is a file; give the export's folder, the one with {CONFIG} in it")
    asked = REPOSITORY.fullmatch(str(place))
    if asked is None:
        raise ValueError(f"no export at {place}; give its folder, or owner/name on the Hugging Face hub")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as err:
        raise ImportError("the Hugging Face hub needs an extra: pip install 'fsr-lab[export]'") from err
    try:
        return Path(snapshot_download(asked["name"], revision=asked["revision"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as err:
        raise OSError(
            f"no folder {place}, and the Hugging Face hub gave no network of that name ({str(err).splitlines()[0]}); "
            "check the path, the name and the connection"
        ) from err


def _program(path: Path, digest: str | None) -> nn.Module:
    if digest is None:
        raise ValueError(
            f"refused to load {path} without its hash: a program of torch.export can run code when it is read; give "
            "sha256=..., as fsr export or somebody you trust tells it, or load the safetensors export"
        )
    with warnings.catch_warnings():
        # of torch 2.11 about its own reader's buffers, which nobody writes to
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        program: nn.Module = torch.export.load(path).module()
    return program


def _filled(bundle: Bundle, state: dict[str, Tensor], path: Path, trust: Sequence[str]) -> nn.Module:
    model = bundle.network.build(trust)
    try:
        model.load_state_dict(state)
    except RuntimeError as err:
        raise ValueError(f"{path} holds weights of another network than {CONFIG} describes; export it again") from err
    if state_hash(model.state_dict()) != bundle.weights_hash:
        raise ValueError(f"{path} holds other weights than {CONFIG} was written for; export or fetch it again")
    return model
