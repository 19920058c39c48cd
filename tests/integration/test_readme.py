"""What the README and the documentation show of the library runs as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch.nn.functional import cross_entropy

from fsr_lab import FSR, Threat, attach
from fsr_lab.attack.pgd import PGD

ROOT = Path(__file__).parents[2]


def blocks(heading, page="README.md"):
    """Return the Python blocks of a page's section."""
    section = (ROOT / page).read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert found, heading
    return found


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 32), torch.tensor([0, 1])


def test_the_first_block_attaches_attacks_and_records(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x, y = images
    names = {"x": x, "y": y, "batches": [(x, y)]}
    exec(blocks("As a library")[0].replace("steps=20", "steps=2"), names)
    assert isinstance(names["record"].findings, tuple)
    assert names["logits"].shape == (2, 10)
    assert {"p_plus", "mask", "f_tilde"} <= set(names["forward"].aux["layer4"])


def test_the_second_block_trains_by_a_plain_loop(images):
    network = torchvision.models.resnet18(num_classes=10)
    before = [parameter.clone() for parameter in network.parameters()]
    names = {
        "FSR": FSR, "PGD": PGD, "attach": attach, "network": network, "batches": [images] * 2,
        "threat": Threat(norm="linf", eps="8/255"), "torch": torch,
        "criterion": lambda adv, clean, y: {"ce": cross_entropy(adv, y)},
    }  # fmt: skip
    exec(blocks("As a library")[1].replace("steps=10", "steps=1"), names)
    assert set(names["losses"]) == {"ce", "layer4/sep", "layer4/rec"}
    assert all(parameter.grad is not None for parameter in names["model"].parameters())
    assert any(not torch.equal(*pair) for pair in zip(before, network.parameters(), strict=True))


@pytest.mark.parametrize("heading", ["In your own training loop", "Attack anything"])
def test_the_library_page_runs(heading):
    for block in blocks(heading, "docs/library.md"):
        exec(block, {})


@pytest.mark.slow
def test_a_plain_loop_needs_nothing_but_torch():
    """With Lightning, Hydra, trackers, timm and plots not installed, as far as Python can tell."""
    absent = ("lightning", "pytorch_lightning", "hydra", "omegaconf", "wandb", "timm", "matplotlib", "sklearn")
    code = f"""
import sys
sys.modules.update(dict.fromkeys({absent!r}))
import torch
from torch.nn.functional import cross_entropy
from fsr_lab import FSR, Threat, attach, evaluate
from fsr_lab.attack.pgd import PGD
from fsr_lab.model.tiny_cnn import TinyCNN
network, threat = TinyCNN(), Threat(norm="linf", eps="8/255")
batches = [(torch.rand(4, 3, 32, 32), torch.arange(4))]
criterion = lambda adv, clean, y: {{"ce": cross_entropy(adv, y)}}
{blocks("As a library")[1]}
print(len(evaluate(model, batches, {{"pgd": attack}}, threat=threat, seed=0)))
"""
    code = code.replace('"layer4"', '"block2"')
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "4"), done.stderr
