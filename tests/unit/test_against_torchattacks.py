"""FGSM and PGD beside an independent library (torchattacks), on one fixed network."""

import pytest
import torch

from fsr_lab.attack.pgd import PGD
from fsr_lab.core.threat import Threat

torchattacks = pytest.importorskip("torchattacks", exc_type=ModuleNotFoundError)

EPS = 8 / 255


@pytest.fixture
def network(classifier):
    return classifier.eval()


def ours(**options):
    return PGD(threat=Threat(norm="linf", eps=EPS), **options)


def test_fgsm_agrees(network, batch):
    wanted = torchattacks.FGSM(network, eps=EPS)(*batch)
    found = ours(steps=1, relative_step=1.0, random_start=False)(network, *batch)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    assert (found - batch[0]).abs().max() > 0.9 * EPS


@pytest.mark.parametrize(("steps", "relative_step"), [(10, 0.25), (20, 0.1)])
@pytest.mark.parametrize("random_start", [False, True])
def test_pgd_agrees(steps, relative_step, random_start, network, batch):
    theirs = torchattacks.PGD(network, eps=EPS, alpha=relative_step * EPS, steps=steps, random_start=random_start)
    torch.manual_seed(7)
    wanted = theirs(*batch)
    torch.manual_seed(7)
    found = ours(steps=steps, relative_step=relative_step, random_start=random_start)(network, *batch)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    assert (found - batch[0]).abs().max() > 0.9 * EPS
