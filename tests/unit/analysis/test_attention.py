"""Attention maps against the closed form of a linear head behind a mean."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from fsr_lab.analysis.attention import Attention, grad_cam
from fsr_lab.core.route import Route
from fsr_lab.model.defended import attach
from fsr_lab.model.resnet import resnet18


def closed_form(features, weight, classes):
    """ReLU(sum_c W_yc F_c / (H W)), divided by its maximum."""
    maps = torch.einsum("nc,nchw->nhw", weight[classes], features).relu()
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-30)  # a map may have nothing above nought


@pytest.mark.parametrize("part", ["f_plus", "f_minus", "f_tilde_minus", "f_tilde", "f"])
def test_it_is_the_closed_form_on_a_resnet(part, study):
    x, y = torch.rand(12, 3, 32, 32), torch.arange(12) % 4
    model = study.model
    view = model.routed({"layer4": Route(part=part)})
    found = grad_cam(view, model.backbone, "layer4", x, y)
    aux = model.forward_with_aux(x).aux["layer4"]
    features = aux["f_plus"] + aux["f_minus"] if part == "f" else aux[part]
    wanted = closed_form(features.detach(), model.backbone.fc.weight.detach(), y)
    assert (wanted.amax((1, 2)) == 1).sum() > 2
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_the_analysis_keeps_maps_images_and_what_they_amount_to(study, attack):
    torch.manual_seed(5)
    natural = attach(resnet18(num_classes=4, width=4), {}, (3, 32, 32), 4).eval()
    found = Attention(attack=attack, images=25)(replace(study, other=natural))
    names = ["clean image", "f_plus", "f_minus", "f_tilde_minus", "f_tilde", "natural"]
    assert found.settings["maps"] == names
    maps = found.arrays["maps"]
    assert maps.shape == (6, 25, 4, 4)
    assert (maps >= 0).all()
    assert (maps <= 1).all()
    assert found.arrays["clean"].shape == (25, 3, 32, 32)
    assert np.array_equal(found.arrays["clean"], study.data.test.x[:25].numpy())
    moved = np.abs(found.arrays["adversarial"].astype(int) - found.arrays["clean"])
    assert 0 < moved.max() <= 8
    centre, correlation = found.arrays["centre"], found.arrays["correlation"]
    with np.errstate(invalid="ignore"):
        for row, own in enumerate(maps):
            for index, one in enumerate(own):
                assert centre[row, index] == pytest.approx(one[1:3, 1:3].sum() / one.sum(), nan_ok=True)
                wanted = np.corrcoef(one.ravel(), maps[0, index].ravel())[0, 1]
                assert correlation[row, index] == pytest.approx(wanted, nan_ok=True)
    assert np.isfinite(centre).any()
    assert np.nanmin(correlation[0]) == pytest.approx(1)


def test_whose_score_is_asked_for(study, attack):
    by_label, by_prediction = (
        Attention(attack=attack, images=25, target=target)(study).arrays for target in ("label", "predicted")
    )
    wrong = by_label["labels"] != by_label["predicted"]
    assert wrong.any()
    assert np.array_equal(by_label["maps"][:, ~wrong], by_prediction["maps"][:, ~wrong])
    assert not np.array_equal(by_label["maps"][1:, wrong], by_prediction["maps"][1:, wrong])


@pytest.mark.parametrize(("wrong", "said"), [({"target": "lable"}, "close names"), ({"images": 0}, "at least 1")])
def test_what_cannot_be_is_refused(wrong, said, attack):
    with pytest.raises(ValueError, match=said):
        Attention(attack=attack, **wrong)


def test_a_missing_package_names_the_command(study, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ImportError, match=r"pip install 'fsr-lab\[analysis\]'"):
        grad_cam(study.model, study.model.backbone, "layer4", torch.rand(1, 3, 32, 32), torch.tensor([0]))
