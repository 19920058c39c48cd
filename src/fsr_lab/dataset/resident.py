"""Batches by index from images that live on the training device: no workers, no host in the loop."""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Self

import numpy as np
import torch
from torch import Tensor

from fsr_lab.dataset.augment import augmentation

log = logging.getLogger(__name__)

SHARE = 0.5
"""Of the device's free memory, what images may take: a network has to be trained in the rest."""

_ORDER, _DRAWS = 0, 1  # the two streams of a seed: the epoch's order, a batch's augmentation


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that a device has free, or None where that is unknown or the host's own business."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


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

    Images that would take more than half of the device's free memory stay on the host, which is said once; each
    batch is then gathered there, goes to the device as uint8 and is augmented there. The batches are the same.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
        batch_size: samples of a global batch.
        seed: what order and augmentation follow, not negative.
        shuffle: whether the order is random, anew in every epoch.
        augment: a name that `fsr_lab.dataset.augment` knows.
        device: where the images are kept, if there is room, and the batches appear.
        rank: which of the ranks this is.
        world_size: how many ranks share each global batch.
        free_memory: tells the bytes that a device has free, None for enough.

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
        free_memory: Callable[[torch.device], int | None] = free_memory,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"expected a batch size of at least 1, got {batch_size}")
        if len(images) < world_size:
            raise ValueError(f"expected an image for each of {world_size} ranks, got {len(images)} images")
        self.device = torch.device(device)
        home = _home(images, self.device, free_memory(self.device))
        self._is_far = home != self.device
        self.images = images.to(home)
        self.labels = labels.to(home)
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
            x, y = self._gathered(rows)
            x = self._augment(x, _generator(self.seed, _DRAWS, epoch, batch, self.rank))
            # before the batch goes out: Lightning stops at the last one without asking for another
            self._epoch, self._batch = (epoch, batch + 1) if batch + 1 < len(self) else (epoch + 1, 0)
            yield x.float() / self._levels, y

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

    def _gathered(self, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        x, y = self.images[rows], self.labels[rows]
        if not self._is_far:
            return x, y
        if self.device.type == "cuda":  # pinned, so that the copy runs while the device computes the step before
            x, y = x.pin_memory(), y.pin_memory()
        return x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)

    def _order(self, epoch: int) -> Tensor | None:
        if not self.shuffle:
            return None
        order = torch.randperm(len(self.images), generator=_generator(self.seed, _ORDER, epoch))
        return order.to(self.images.device)

    def _rows(self, batch: int) -> tuple[int, int]:
        start, stop = self._edges[batch], self._edges[batch + 1]
        rows = stop - start
        return start + rows * self.rank // self.world_size, start + rows * (self.rank + 1) // self.world_size


def _home(images: Tensor, device: torch.device, free: int | None) -> torch.device:
    """Return where images are kept: on the device, or on the host if they would fill it."""
    size = images.numel() * images.element_size()
    if free is None or size <= SHARE * free:
        return device
    log.warning(
        "%.0f MB of images stay in host memory: %s has %.0f MB free, of which they may take %.0f%%; "
        "every batch is copied there, which costs some speed",
        size / 1e6, device, free / 1e6, 100 * SHARE,
    )  # fmt: skip
    return torch.device("cpu")


def _generator(*key: int) -> torch.Generator:
    """Return a CPU generator of its own for this key; neighbouring keys share nothing."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))
