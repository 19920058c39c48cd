"""Feature swaps, masks and distances, each against what a few lines compute by themselves."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fsr_lab.analysis.feature_distance import FeatureDistance
from fsr_lab.analysis.feature_swap import FeatureSwap
from fsr_lab.analysis.mask_maps import MaskMaps
from fsr_lab.core.analysis import AnalysisRecord
from fsr_lab.core.crafting import judging
from fsr_lab.core.provenance import Provenance
from fsr_lab.core.route import Route
from fsr_lab.evaluation.run import evaluate

from .conftest import THREAT, network


def unmoved(model, x, y):
    return x


def test_each_part_is_attacked_anew_and_under_the_examples_of_the_whole(study, attack):
    found = FeatureSwap(parts=("f_tilde", "f_plus", "f_minus"), rescaled=("f_minus",))(study)
    parts = ["f_tilde", "f_plus", "f_minus", "f_minus_rescaled", "random_mask"]
    assert sorted(found.records) == sorted(parts + [f"{part}_of_the_whole" for part in parts[1:]])
    whole = evaluate(study.model, study.batches(), study.attacks, threat=THREAT, seed=3, chunk=20)
    assert np.array_equal(found.records["f_tilde"].outcome, whole.outcome)
    examples = torch.cat([x_adv for _, x_adv, _ in _crafted_as_evaluated(study, attack)])
    with judging(study.model.routed({"layer4": Route(part="f_minus")})) as view:
        right = view(examples).argmax(1) == study.data.test.y[:30]
    assert np.array_equal(found.records["f_minus_of_the_whole"].outcome[1], right.numpy())
    assert found.records["f_plus"].name == "AT+FSR feature=f_plus"
    assert found.records["f_plus_of_the_whole"].name == "AT+FSR feature=f_plus, examples of the whole"


def _crafted_as_evaluated(study, attack):
    """The examples of the whole network, by the draws of an evaluation's cells."""
    from fsr_lab.evaluation.cell import cell_seed

    for index, (x, y) in enumerate(study.batches()):
        torch.manual_seed(cell_seed(3, "pgd2", index))
        yield x, attack(study.model, x, y), y


def test_the_random_mask_is_as_dense_as_the_real_one(study):
    found = FeatureSwap(parts=(), rescaled=(), of_the_whole=False)(study)
    x = study.data.test.x[:20].float() / 255
    with judging(study.model):
        mask = study.model.forward_with_aux(x).aux["layer4"]["mask"]
    assert found.settings["density"] == pytest.approx(mask.mean().item(), abs=1e-6)
    assert list(found.records) == ["random_mask"]


@pytest.mark.slow
def test_an_ablation_has_fewer_parts(study):
    swap = FeatureSwap(parts=("f_minus", "f_tilde_minus"), random_mask=False, of_the_whole=False)
    found = swap(replace(study, model=network(use_rec=False)))
    assert set(found.records) == {"f_minus", "f_minus_rescaled"}


def test_a_network_without_fsr_or_without_an_attack_is_refused(study):
    with pytest.raises(ValueError, match="evaluation=paper"):
        FeatureSwap()(replace(study, attacks={}))
    with pytest.raises(ValueError, match=r"no FSR in this network named 'layre4'; close names: .'layer4'"):
        FeatureSwap(point="layre4")(study)


def test_masks_are_counted_by_class(study, attack):
    found = MaskMaps(attack=attack)(study)
    arrays = found.arrays
    labels = study.data.test.y[:30]
    assert arrays["images"].tolist() == torch.bincount(labels, minlength=4).tolist()
    x = study.data.test.x[:30].float() / 255
    with judging(study.model):
        mask = study.model.forward_with_aux(x).aux["layer4"]["mask"].double().numpy()
    units = mask[0].size
    assert np.array_equal(arrays["histogram"].sum(axis=2), np.stack([arrays["images"] * units] * 2))
    for label in range(4):
        own = mask[labels.numpy() == label]
        wanted, _ = np.histogram(own, bins=50, range=(0, 1))
        assert np.abs(arrays["histogram"][0, label] - wanted).sum() <= 2  # a value on an edge, rounded
        np.testing.assert_allclose(arrays["where"][0, label], own.mean(axis=(0, 1)), atol=1e-6)
        np.testing.assert_allclose(arrays["channels"][0, label], own.mean(axis=(0, 2, 3)), atol=1e-6)
    assert (arrays["changed"] > 0).all()
    assert not MaskMaps(attack=unmoved)(study).arrays["changed"].any()


def test_there_is_no_mask_without_separation(study, attack):
    with pytest.raises(ValueError, match="without Separation"):
        MaskMaps(attack=attack)(replace(study, model=network(use_sep=False)))


def test_an_image_that_is_not_moved_has_moved_features_nowhere(study):
    found = FeatureDistance(attack=unmoved, layers=["layer1", "layer4"])(study)
    assert found.arrays["relative"].shape == (2, 30)
    assert not found.arrays["relative"].any()
    np.testing.assert_allclose(found.arrays["cosine"], 1, atol=1e-5)
    assert not found.arrays["fooled"].any()


def test_distances_are_those_of_what_the_network_passes_on(study, attack):
    found = FeatureDistance(attack=attack, layers=["layer4"])(study)
    pairs = [(x, x_adv) for x, x_adv, _ in study.attacked(attack, "distances")]
    with judging(study.model):
        clean, moved = (
            torch.cat([study.model.forward_with_aux(pair[side]).aux["layer4"]["f_tilde"] for pair in pairs]).flatten(1)
            for side in (0, 1)
        )
    wanted = (moved - clean).norm(dim=1) / clean.norm(dim=1)
    np.testing.assert_allclose(found.arrays["relative"][0], wanted.numpy(), rtol=1e-4)
    assert not any(module._forward_hooks for name, module in study.model.backbone.named_modules() if name == "layer1")


def test_layers_must_be_named_and_exist(study, attack):
    with pytest.raises(ValueError, match=r"analysis.layers=\[...\]"):
        FeatureDistance(attack=attack, layers=[])(study)
    with pytest.raises(ValueError, match="no layer named 'layr1'"):
        FeatureDistance(attack=attack, layers=["layr1"])(study)


def test_an_analysis_is_read_back_and_a_damaged_one_told(tmp_path):
    about = Provenance(command="c", revision="r", dirty=False, versions={}, hashes={}, host={}, seed=1)
    kept = AnalysisRecord(
        kind="knn", name="it", settings={"options": [{"k": 5}]}, arrays={"a": np.arange(3)}, provenance=about
    )
    path = kept.save(tmp_path, "knn")
    again = AnalysisRecord.load(path)
    assert (again.kind, again.name, again.settings, again.provenance) == ("knn", "it", kept.settings, about)
    assert np.array_equal(again.arrays["a"], np.arange(3))
    path.with_suffix(".npz").write_bytes(b"half")
    with pytest.raises(ValueError, match="not a whole analysis"):
        AnalysisRecord.load(path)
