"""A submission to RobustBench (Croce et al., 2021, arXiv:2010.09670), laid out as its repository is.

robustbench/model_zoo/architectures/ID.py   the model file, with the entry for the zoo's dictionary
model_info/DATASET/NORM/ID.json             what the leaderboard shows
models/DATASET/NORM/ID.pt                   the state dict
submission.md                               the text of the issue that asks for it
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsr_lab.core.files import write_atomically, write_text
from fsr_lab.core.record import CLEAN, EvaluationRecord
from fsr_lab.core.units import as_fraction
from fsr_lab.export import source
from fsr_lab.export.network import Network

DATASETS = {"cifar10": 10_000, "cifar100": 10_000}
"""What the leaderboard ranks and we prepare: how many test images a claim is about."""
NORMS = {"linf": "Linf", "l2": "L2"}
STRIPPED = ("model.", "module.")
"""What RobustBench cuts from every key that has it anywhere, the last of these first: it takes it for a wrapper's."""
CHAIN = "autoattack"
UNMEASURED = "not measured: fsr evaluate run=DIR evaluation=autoattack on the whole test set, then export again"


def write(folder: Path, network: Network) -> str:
    """Write the submission and return the state dict's place in it.

    Raises:
        ValueError: RobustBench ranks no such data.
    """
    if network.dataset not in DATASETS:
        raise ValueError(
            f"RobustBench ranks networks for {sorted(DATASETS)} and ImageNet, this one is for {network.dataset}; "
            "export it as safetensors instead"
        )
    place = Path(network.dataset) / NORMS[network.threat.norm]
    info = model_info(network)
    write_text(folder / "robustbench" / "model_zoo" / "architectures" / f"{network.name}.py", _model_file(network))
    write_text(folder / "model_info" / place / f"{network.name}.json", json.dumps(info, indent=2) + "\n")
    write_text(folder / "submission.md", _issue(network, info))
    weights = Path("models") / place / f"{network.name}.pt"
    state = {_wrapped(name): tensor for name, tensor in network.state.items()}
    write_atomically(folder / weights, lambda stream: torch.save(state, stream))
    return weights.as_posix()


def unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a submission's state dict under the network's own names."""
    for text in reversed(STRIPPED):
        state = {name[len(text) :] if text in name else name: tensor for name, tensor in state.items()}
    return state


def model_info(network: Network) -> dict[str, Any]:
    """Return what RobustBench's JSON says; an accuracy that was not measured on the whole test set is null."""
    clean, robust = _claim(network)
    return {
        "link": network.paper["link"], "name": network.paper["title"], "authors": network.paper["authors"],
        "additional_data": False, "number_forward_passes": 1, "dataset": network.dataset,
        "venue": network.paper["venue"], "architecture": network.architecture,
        "eps": as_fraction(network.threat.eps), "clean_acc": clean, "reported": robust, "autoattack_acc": robust,
        "unreliable": False,
    }  # fmt: skip


def _claim(network: Network) -> tuple[str | None, str | None]:
    """Return clean accuracy and that under AutoAttack, in percent as text, as far as a record has all test images."""
    whole = [
        record for record in network.records
        if len(record) == DATASETS[network.dataset] and record.threat == network.threat
    ]  # fmt: skip
    clean = next((_percent(record, (CLEAN,)) for record in whole), None)
    attacked = (record for record in whole if CHAIN in record.chains)
    return clean, next((_percent(record, (CLEAN, *record.chains[CHAIN])) for record in attacked), None)


def _percent(record: EvaluationRecord, attacks: tuple[str, ...]) -> str:
    return f"{100 * record.worst_case(attacks).mean():.2f}"


def _wrapped(name: str) -> str:
    """Return a key to which RobustBench's cuts give the name back."""
    for text in STRIPPED:
        if text in name:
            name = text + name
    return name


def _model_file(network: Network) -> str:
    return f'''"""{network.name}, for RobustBench. Needs: pip install fsr-lab."""

{source.imports(network.blueprint)}


def {network.name}(num_classes={network.blueprint.num_classes}):
    """{network.headline}: images in [0, 1] to logits."""
{source.body(network.blueprint)}


# for the dictionary {network.dataset}, {NORMS[network.threat.norm]}; gdrive_id is the uploaded state dict's
ENTRY = ("{network.name}", {{"model": {network.name}, "gdrive_id": ""}})
'''


def _issue(network: Network, info: dict[str, Any]) -> str:
    place = f"{network.dataset}/{NORMS[network.threat.norm]}"
    return f"""# [New Model] {network.name}

## Paper Information

- **Paper Title**: {network.paper["title"] or "yours to give: paper.title="}
- **Paper URL**: {network.paper["link"] or "yours to give: paper.link="}
- **Paper authors**: {network.paper["authors"] or "yours to give: paper.authors="}

## Leaderboard Claim(s)

### Model 1

- **Architecture**: {network.architecture}
- **Dataset**: {network.dataset}
- **Threat Model**: {NORMS[network.threat.norm]}
- **eps**: {info["eps"]}
- **Clean accuracy**: {info["clean_acc"] or UNMEASURED}
- **Robust accuracy**: {info["autoattack_acc"] or UNMEASURED}
- **Additional data**: {str(info["additional_data"]).lower()}
- **Evaluation method**: AutoAttack, standard version, as fsr-lab implements it
- **Checkpoint and code**: `models/{place}/{network.name}.pt`,
  `robustbench/model_zoo/architectures/{network.name}.py`, which needs `pip install fsr-lab`

## Model Zoo

- [ ] I want to add my models to the Model Zoo (check if true)
- [x] I use an architecture that is **not** included among those of the zoo (check if true)
- [{"x" if network.licence == "MIT" else " "}] I agree to release my model(s) under MIT license (check if true) **OR**
- [{" " if network.licence == "MIT" else "x"}] I want my models to be released under a custom license: {network.licence}
"""
