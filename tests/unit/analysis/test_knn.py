"""Nearest neighbours against scikit-learn's, on features computed apart from the analysis."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from fsr_lab.analysis.knn import NearestNeighbours, nearest_of, weighted_vote
from fsr_lab.core.crafting import judging


def features(model, x, part, pooling):
    with judging(model):
        aux = model.forward_with_aux(x).aux["layer4"]
    value = aux["f_plus"] + aux["f_minus"] if part == "f" else aux[part]
    return (value.mean((2, 3)) if pooling == "pooled" else value.flatten(1)).numpy().astype(np.float64)


def voted(bank, classes, queries, k, gamma):
    """What scikit-learn predicts, with the weights of cosine distances."""

    def weights(distance):
        return np.exp((1 - distance) / gamma)

    found = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=weights).fit(bank, classes)
    return found.predict(queries)


@pytest.fixture
def found(study, attack):
    return NearestNeighbours(attack=attack, ks=(3, 7), gammas=(0.1, 0.5), bank_samples=50)(study)


def attacked_images(study, attack):
    return torch.cat([x_adv for _, x_adv, _ in study.attacked(attack, "knn queries")])


def test_every_combination_is_a_row(found, study):
    options = found.settings["options"]
    assert len({tuple(option.values()) for option in options}) == len(options) == 5 * 3 * 2 * 2 * 2
    assert found.arrays["predicted"].shape == (len(options), 30)
    assert found.arrays["labels"].tolist() == study.data.test.y[:30].tolist()


@pytest.mark.parametrize("bank", ["train", "test_including_self", "test_excluding_self"])
def test_it_predicts_what_scikit_learn_predicts(bank, found, study, attack):
    images = study.data.train.x[:50] if bank == "train" else study.data.test.x
    classes = (study.data.train.y[:50] if bank == "train" else study.data.test.y).numpy()
    x_adv, checked = attacked_images(study, attack), 0
    for option, row in zip(found.settings["options"], found.arrays["predicted"], strict=True):
        if option["bank"] != bank:
            continue
        natural = features(study.model, images.float() / 255, option["part"], option["pooling"])
        queries = features(study.model, x_adv, option["part"], option["pooling"])
        if bank == "test_excluding_self":
            wanted = [
                voted(
                    np.delete(natural, own, 0), np.delete(classes, own), queries[[own]], option["k"], option["gamma"]
                )[0]
                for own in range(30)
            ]
        else:
            wanted = voted(natural, classes, queries, option["k"], option["gamma"])
        assert row.tolist() == list(wanted), option
        checked += 1
    assert checked == 5 * 2 * 2 * 2


def test_ones_own_image_is_the_nearest_where_nothing_was_moved(study, attack):
    still = NearestNeighbours(attack=lambda model, x, y: x, ks=(1,), gammas=(0.1,), banks=("test_including_self",))(
        study
    )
    assert (still.arrays["predicted"] == still.arrays["labels"]).all()


def test_a_bank_in_parts_is_the_bank():
    cosines, labels = torch.rand(6, 40), torch.randint(4, (40,))
    whole, parts = nearest_of(None, cosines, labels, 9), None
    for start in range(0, 40, 7):
        parts = nearest_of(parts, cosines[:, start : start + 7], labels[start : start + 7], 9)
    assert torch.equal(whole.similarity, parts.similarity)
    assert torch.equal(whole.labels, parts.labels)


def test_a_near_one_outvotes_two_that_are_far_and_a_warm_vote_counts_heads():
    near = nearest_of(None, torch.tensor([[0.9, 0.5, 0.4]]), torch.tensor([2, 1, 1]), 3)
    assert weighted_vote(near, 3, 0.1, 4).tolist() == [2]  # e^9 against e^5 + e^4
    assert weighted_vote(near, 3, 10.0, 4).tolist() == [1]
    assert weighted_vote(near, 1, 10.0, 4).tolist() == [2]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"banks": ["trian"]}, "close names: .'train'"),
        ({"poolings": ["max"]}, "no pooling"),
        ({"ks": [0]}, "k of at least 1"),
        ({"gammas": [0.0]}, "gamma above 0"),
    ],
)
def test_what_cannot_be_is_refused(wrong, said, attack):
    with pytest.raises(ValueError, match=said):
        NearestNeighbours(attack=attack, **wrong)


def test_a_bank_too_small_is_refused(study, attack):
    with pytest.raises(ValueError, match=r"has 49 images for 50 neighbours"):
        NearestNeighbours(attack=attack, ks=(50,), banks=("test_excluding_self",))(study)
