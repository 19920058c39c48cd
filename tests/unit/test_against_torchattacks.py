"""FGSM, PGD, MI-, DI- and TI-FGSM beside an independent library (torchattacks), on one fixed network."""

import pytest
import torch

from fsr_lab.attack.input_diversity import InputDiversity
from fsr_lab.attack.pgd import PGD
from fsr_lab.attack.translation import Translation
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


@pytest.mark.parametrize("decay", [1.0, 0.3])
def test_mifgsm_agrees(decay, network, batch):
    wanted = torchattacks.MIFGSM(network, eps=EPS, alpha=EPS / 4, steps=10, decay=decay)(*batch)
    found = ours(steps=10, relative_step=0.25, random_start=False, momentum=decay)(network, *batch)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("decay", [0.0, 1.0])
@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("side", [8, 32])
def test_di_and_ti_fgsm_agree_on_its_preset(decay, smooth, side, network):
    batch = torch.rand(4, 3, side, side), torch.arange(4)
    theirs = torchattacks.TIFGSM if smooth else torchattacks.DIFGSM
    torch.manual_seed(7)
    wanted = theirs(network, eps=EPS, alpha=EPS / 4, steps=10, decay=decay)(*batch)
    torch.manual_seed(7)
    found = ours(
        steps=10, relative_step=0.25, random_start=False, momentum=decay,
        diversity=InputDiversity(rate=0.9, probability=0.5, interpolation="bilinear"),
        smoothing=Translation(size=15, kernel="gaussian") if smooth else None,
    )(network, *batch)  # fmt: skip
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    assert (found - batch[0]).abs().max() > 0.9 * EPS
