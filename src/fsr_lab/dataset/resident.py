"""Batches by index from images that live on the training device: no workers, no host in the loop."""

from collections.abc import Iterator, Mapping
from typing import Self

import numpy as np
import torch
from torch import Tensor

from fsr_lab.dataset.augment import augmentation

_ORDER, _DRAWS = 0, 1  # the two streams of a seed: the epoch's order, a batch's augmentation


class ResidentBatches:
    """One epoch of `(x, y)` after another, each exactly determined by (seed, epoch).

    Iterating is one pass over an epoch. A completed pass moves the epoch on by one, and so does one that was
    left early; only the first pass after `load_state_dict` starts where the saved one stood. A batch counts
    as seen once it is handed out, as Lightning needs it to save and restore the middle of an epoch. Before
    each epoch Lightning also says which one it is, by `set_epoch`: from a checkpoint made at the end of an
    epoch it restores no position.

    The last, partial batch of an epoch is kept. If it has fewer than two samples for each rank it joins the
    batch before it, because BatchNorm in training mode cannot normalise a single sample.

    With several ranks, each takes its contiguous slice of every *global* batch: all ranks make equally many
    steps, and their slices differ by at most one sample.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
        batch_size: samples of a global batch.
        seed: what order and augmentation follow, not negative.
        shuffle: whether the order is random, anew in every epoch.
        augment: a name that `fsr_lab.dataset.augment` knows.
        device: where the images are kept and the batches appear.
        rank: which of the ranks this is.
        world_size: how many ranks share each global batch.

    Raises:
        ValueError: there are no images for some rank, or the batch size is not positive.
    """

    batch_sampler = None  # Lightning asks for it wherever it finds a `sampler`

    def __init__(
        self,
        *,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        seed: int,
        shuffle: bool,
        augment: str,
        device: torch.device | str,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"expected a batch size of at least 1, got {batch_size}")
        if len(images) < world_size:
            raise ValueError(f"expected an image for each of {world_size} ranks, got {len(images)} images")
        self.images = images.to(device)
        self.labels = labels.to(device)
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world_size = world_size
        self._augment = augmentation(augment)
        # on the device, because CUDA multiplies by the rounded reciprocal of a host number: other bits
        self._levels = torch.tensor(255.0, device=device)
        self._edges: list[int] = [*range(0, len(images), batch_size), len(images)]
        if len(self._edges) > 2 and self._edges[-1] - self._edges[-2] < 2 * world_size:
            del self._edges[-2]
        self._epoch, self._batch = 0, 0
        self._resumed = False

    def __len__(self) -> int:
        """Return the number of global batches in an epoch."""
        return len(self._edges) - 1

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Make a pass; it starts when the first batch is asked for.

        Yields:
            x: (n, C, H, W) float32 in [0, 1], and y: (n,) int64; both on the device.
        """
        if self._batch > 0 and not self._resumed:
            self._epoch, self._batch = self._epoch + 1, 0
        self._resumed = False
        epoch = self._epoch
        order = self._order(epoch)
        for batch in range(self._batch, len(self)):
            start, stop = self._rows(batch)
            rows = slice(start, stop) if order is None else order[start:stop]
            x = self._augment(self.images[rows], _generator(self.seed, _DRAWS, epoch, batch, self.rank))
            # before the batch goes out: Lightning stops at the last one without asking for another
            self._epoch, self._batch = (epoch, batch + 1) if batch + 1 < len(self) else (epoch + 1, 0)
            yield x.float() / self._levels, self.labels[rows]

    def share(self, batch_index: int) -> float:
        """Return the factor for this rank's mean loss that makes DDP's average the mean of the global batch.

        Args:
            batch_index: the batch's place in its epoch.
        """
        start, stop = self._rows(batch_index)
        return (stop - start) * self.world_size / (self._edges[batch_index + 1] - self._edges[batch_index])

    @property
    def sampler(self) -> Self:
        """Itself: where Lightning looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Move to the start of an epoch, unless this is the epoch already."""
        if epoch != self._epoch:
            self._epoch, self._batch = epoch, 0

    def state_dict(self) -> dict[str, int]:
        """Return the position of the next batch."""
        return {"epoch": self._epoch, "batch": self._batch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Let the next pass start at a saved position.

        Raises:
            ValueError: the epoch has fewer batches now than when the position was saved.
        """
        if state["batch"] >= len(self):
            raise ValueError(
                f"expected a saved position within the epoch's {len(self)} batches, got {state['batch']}: "
                f"resume with the batch_size and val_size the run was started with"
            )
        self._epoch, self._batch = state["epoch"], state["batch"]
        self._resumed = True

    def _order(self, epoch: int) -> Tensor | None:
        if not self.shuffle:
            return None
        order = torch.randperm(len(self.images), generator=_generator(self.seed, _ORDER, epoch))
        return order.to(self.images.device)

    def _rows(self, batch: int) -> tuple[int, int]:
        start, stop = self._edges[batch], self._edges[batch + 1]
        rows = stop - start
        return start + rows * self.rank // self.world_size, start + rows * (self.rank + 1) // self.world_size


def _generator(*key: int) -> torch.Generator:
    """Return a CPU generator of its own for this key; neighbouring keys share nothing."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))
