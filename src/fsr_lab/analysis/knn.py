"""Which class a part of the separated features lies next to: weighted k-nearest neighbours (the paper's Table 5b)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fsr_lab.analysis.study import Findings, Study
from fsr_lab.callback.progress import track
from fsr_lab.core.crafting import judging
from fsr_lab.core.route import Part
from fsr_lab.core.suggest import unknown
from fsr_lab.core.types import Attack

Bank = Literal["train", "test_excluding_self", "test_including_self"]
Pooling = Literal["pooled", "flat"]


class Neighbours(NamedTuple):
    """The nearest of a bank so far, for each of N queries, nearest first.

    Attributes:
        similarity: float32 (N, k), cosines.
        labels: int64 (N, k).
    """

    similarity: Tensor
    labels: Tensor


@dataclass(frozen=True, kw_only=True)
class NearestNeighbours:
    """Classifies the features of attacked test images by natural images whose features of the same part are nearest.

    METHOD 6.2. A query q scores a class by the sum of exp(cos(q, v) / gamma) over those of its k nearest v, by cosine,
    that are of it (Wu et al., 2018, arXiv:1805.01978). The paper names neither its bank, nor gamma, nor whether
    features are pooled: all are computed, and nobody chooses after the fact. A bank of the test images that holds the
    query's own clean image is marked by its name.

    Arrays: `predicted` int16 (options, N), `labels` int64 (N,); settings: `options`, a list of {part, bank, pooling, k,
    gamma}, in the order of the rows.

    Args:
        attack: makes the queries.
        parts: whose features are compared; those that an ablation lacks are left out.
        banks: of natural images, each with test transforms and the masks as deployed.
        poolings: mean over positions, or all of (C, H, W) in one vector; normalised to length 1 either way.
        ks: how many neighbours have a say.
        gammas: temperatures, above 0.
        bank_samples: how many training images, from the first; None is all.
        point: of the FSR; None is the only one.

    Raises:
        ValueError: an unknown bank or pooling, a k below 1 or a gamma that is not positive.
    """

    attack: Attack
    parts: Sequence[Part] = ("f_tilde", "f_plus", "f_minus", "f_tilde_minus", "f")
    banks: Sequence[Bank] = get_args(Bank)
    poolings: Sequence[Pooling] = get_args(Pooling)
    ks: Sequence[int] = (5, 20)
    gammas: Sequence[float] = (0.1, 0.07)
    bank_samples: int | None = None
    point: str | None = None

    def __post_init__(self) -> None:
        for kind, given, known in (
            ("bank", self.banks, get_args(Bank)),
            ("pooling", self.poolings, get_args(Pooling)),
        ):
            for name in given:
                if name not in known:
                    raise ValueError(unknown(kind, name, known))
        if min(self.ks, default=0) < 1 or min(self.gammas, default=0.0) <= 0:
            raise ValueError(f"expected every k of at least 1 and every gamma above 0, got {self.ks}, {self.gammas}")

    def __call__(self, study: Study) -> Findings:
        """Return the predictions of every combination.

        Raises:
            ValueError: there is no such FSR, or a bank has fewer images than neighbours are asked for.
        """
        point = study.site(self.point)
        parts = study.parts(point, self.parts)
        queries, labels = self._queries(study, point, parts)
        predicted, options = [], []
        nearest: dict[tuple[str, str, str], Neighbours] = {}
        for source in dict.fromkeys(map(_source, self.banks)):
            nearest |= self._nearest(study, point, source, queries)
        for bank in self.banks:
            for part, pooling in queries:
                neighbours = nearest[bank, part, pooling]
                for k in self.ks:
                    for gamma in self.gammas:
                        votes = weighted_vote(neighbours, k, gamma, study.data.num_classes)
                        predicted.append(votes.cpu().numpy().astype(np.int16))
                        options.append({"part": part, "bank": bank, "pooling": pooling, "k": k, "gamma": gamma})
        arrays = {"predicted": np.stack(predicted), "labels": labels.cpu().numpy()}
        return Findings(arrays, {"options": options, "attack": repr(self.attack), "point": point})

    def _queries(self, study: Study, point: str, parts: Sequence[str]) -> tuple[dict[tuple[str, str], Tensor], Tensor]:
        """Return {(part, pooling): (N, D) unit vectors of the attacked images}, and their labels."""
        rows: dict[tuple[str, str], list[Tensor]] = {}
        labels = []
        for _, x_adv, y in study.attacked(self.attack, "knn queries"):
            for key, vectors in self._features(study, point, parts, x_adv).items():
                rows.setdefault(key, []).append(vectors)
            labels.append(y)
        return {key: torch.cat(vectors) for key, vectors in rows.items()}, torch.cat(labels)

    def _nearest(
        self, study: Study, point: str, source: str, queries: dict[tuple[str, str], Tensor]
    ) -> dict[tuple[str, str, str], Neighbours]:
        """Search the banks of a source in batches, so that its features need never be in memory together."""
        most, banks = max(self.ks), [bank for bank in self.banks if _source(bank) == source]
        parts = list(dict.fromkeys(part for part, _ in queries))
        found: dict[tuple[str, str, str], Neighbours] = {}
        seen = 0
        for x, y in self._images(study, source):
            for key, vectors in self._features(study, point, parts, x).items():
                cosines = queries[key] @ vectors.T
                for bank in banks:
                    own = _without_self(cosines, seen) if bank == "test_excluding_self" else cosines
                    found[bank, *key] = nearest_of(found.get((bank, *key)), own, y, most)
            seen += len(y)
        for bank in banks:
            left = seen - (bank == "test_excluding_self")
            if left < most:
                raise ValueError(f"the bank {bank} has {left} images for {most} neighbours; give smaller analysis.ks")
        return found

    def _images(self, study: Study, source: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield natural images in batches: all test images, or training images."""
        if source == "train":
            batches = study.data.bank_batches(study.device, limit=self.bank_samples)
        else:
            batches = study.data.test_batches(study.device)
        yield from track(batches, f"knn bank {source}", total=len(batches))

    def _features(self, study: Study, point: str, parts: Sequence[str], x: Tensor) -> dict[tuple[str, str], Tensor]:
        """Return {(part, pooling): (N, D) unit vectors} of images, masks as deployed."""
        rows: dict[tuple[str, str], Tensor] = {}
        with judging(study.model):
            for part, features in features_of(study, point, parts, x).items():
                for pooling in self.poolings:
                    vectors = features.mean((2, 3)) if pooling == "pooled" else features.flatten(1)
                    rows[part, pooling] = functional.normalize(vectors.float(), dim=1)
        return rows


def _source(bank: str) -> str:
    """Return whose images a bank holds: "train" or "test"."""
    return bank.partition("_")[0]


def _without_self(cosines: Tensor, seen: int) -> Tensor:
    """Return cosines (N, M) with M images from place `seen` on, where no query has itself among them."""
    count, images = cosines.shape
    own = torch.arange(seen, max(seen, min(seen + images, count)), device=cosines.device)  # none behind the last query
    left = cosines.clone()
    left[own, own - seen] = -torch.inf
    return left


def features_of(study: Study, point: str, parts: Sequence[str], x: Tensor) -> dict[str, Tensor]:
    """Return {part: (N, C, H, W)} of what an FSR makes of images, "f" among the parts it may be asked for."""
    aux = study.model.forward_with_aux(x).aux[point]
    # f+ and f- are complements: their sum is the feature that came in
    return {part: aux["f_plus"] + aux["f_minus"] if part == "f" else aux[part] for part in parts}


def nearest_of(found: Neighbours | None, cosines: Tensor, labels: Tensor, most: int) -> Neighbours:
    """Return the `most` nearest of those found so far and of a further part of the bank.

    Args:
        found: so far; None at first.
        cosines: (N, M) of the queries with the further part.
        labels: (M,) of the further part.
        most: how many to keep.
    """
    classes = labels.expand(len(cosines), -1)
    if found is not None:
        cosines = torch.cat([found.similarity, cosines], dim=1)
        classes = torch.cat([found.labels, classes], dim=1)
    similarity, places = cosines.topk(min(most, cosines.shape[1]), dim=1)
    return Neighbours(similarity, classes.gather(1, places))


def weighted_vote(neighbours: Neighbours, k: int, gamma: float, num_classes: int) -> Tensor:
    """Return (N,) the class of the largest sum of exp(cos / gamma) over the k nearest; of equals the smallest."""
    weights = (neighbours.similarity[:, :k] / gamma).exp()
    scores = torch.zeros(len(weights), num_classes, dtype=weights.dtype, device=weights.device)
    return scores.scatter_add_(1, neighbours.labels[:, :k], weights).argmax(1)
