"""The data module that every dataset fills: prepared file, fixed splits, resident batches."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from fsr_lab.dataset.arrays import Arrays
from fsr_lab.dataset.augment import augmentation
from fsr_lab.dataset.prepare import load_prepared, prepare
from fsr_lab.dataset.resident import ResidentBatches
from fsr_lab.dataset.split import Split, stratified

Batch = tuple[Tensor, Tensor]


@dataclass(kw_only=True, eq=False)
class ImageDataModule(LightningDataModule, ABC):
    """Images of one dataset as resident batches; a subclass says where they come from.

    Validation images are taken out of the training part, stratified by class, by `split_seed` alone: another
    `seed` trains on the same images. The test part is never touched.

    Args:
        name: the stem of the prepared file.
        folder: where prepared files and archives lie.
        num_classes: K.
        image_shape: (C, H, W).
        batch_size: samples of a global training batch, at least 2 for each rank.
        eval_batch_size: samples of a validation or test batch.
        val_size: how many training images are held out for validation; 0 for none.
        split_seed: what the choice of validation images follows.
        augment: how training images are varied: "none" or "pad_crop_flip".
        seed: what order and augmentation follow.
        source: a file or folder to prepare from instead of the dataset's own sources; read when preparing.

    Raises:
        ValueError: a value that cannot work; the message says why.
    """

    needs_source: ClassVar[bool] = False
    """Whether only the user can say where the images are."""

    name: str = field()  # without field() the inherited class attribute would become a default
    folder: Path
    num_classes: int
    image_shape: tuple[int, int, int]
    batch_size: int
    eval_batch_size: int
    val_size: int
    split_seed: int
    augment: str
    seed: int
    source: Path | None

    def __post_init__(self) -> None:
        super().__init__()
        self.folder = Path(self.folder).expanduser()
        self.source = None if self.source is None else Path(self.source).expanduser()
        self.image_shape = _shape(self.image_shape)
        augmentation(self.augment)
        if self.batch_size < 2:
            raise ValueError(
                f"expected batch_size of at least 2, got {self.batch_size}: BatchNorm cannot normalise "
                f"a training batch of one"
            )
        if self.eval_batch_size < 1:
            raise ValueError(f"expected eval_batch_size of at least 1, got {self.eval_batch_size}")
        self._splits: dict[str, Split] = {}
        self._data_hash = ""

    @abstractmethod
    def build_arrays(self) -> Arrays:
        """Fetch or make the images; called once, under a lock, when nothing is prepared."""

    @property
    def train(self) -> Split:
        """The training part without the validation images."""
        return self._split("train")

    @property
    def val(self) -> Split:
        """The validation images, held out of the training part; none if `val_size` is 0."""
        return self._split("val")

    @property
    def test(self) -> Split:
        """The test part, whole."""
        return self._split("test")

    @property
    def data_hash(self) -> str:
        """Twelve hexadecimal digits that stand for every pixel and label, for provenance."""
        self._split("test")
        return self._data_hash

    @property
    def parameters(self) -> dict[str, object]:
        """What the prepared images depend on: a file made with others is not this dataset.

        A local source is part of it only where nothing verifies that it holds what the dataset's own sources hold.
        """
        elsewhere = {field.name for field in fields(ImageDataModule)} | {"mirrors"}
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in elsewhere}
        if self.source is not None and not own.get("verify", False):
            own["source"] = str(self.source.absolute())
        return {"image_shape": list(self.image_shape), "num_classes": self.num_classes} | own

    def prepare(self, *, force: bool = False) -> Path:
        """Return the prepared file, made first if it is missing or if `force` asks for it anew."""
        return prepare(
            self.name,
            self.folder,
            self.build_arrays,
            image_shape=self.image_shape,
            num_classes=self.num_classes,
            parameters=self.parameters,
            force=force,
        )

    def prepare_data(self) -> None:
        """Prepare the dataset if that has not been done: Lightning's hook."""
        self.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Open the prepared file and cut the splits, once, whatever the stage.

        Raises:
            FileNotFoundError: nothing is prepared.
            ValueError: the prepared file is damaged, or is not what the configuration says.
        """
        if self._splits:
            return
        data = load_prepared(self.name, self.folder, self.parameters)
        val_ids = stratified(data.y_train, self.val_size, self.num_classes, seed=self.split_seed)
        is_train = torch.ones(len(data.y_train), dtype=torch.bool)
        is_train[val_ids] = False
        train_ids = is_train.nonzero().squeeze(1)
        self._data_hash = data.data_hash
        self._splits = {
            "train": Split(data.x_train[train_ids], data.y_train[train_ids], train_ids),
            "val": Split(data.x_train[val_ids], data.y_train[val_ids], val_ids),
            "test": Split(data.x_test, data.y_test, torch.arange(len(data.y_test))),
        }

    def train_dataloader(self) -> ResidentBatches:
        """Return shuffled, augmented batches of the training images for this rank.

        Raises:
            ValueError: a rank would get a batch of one.
        """
        ranks = self.trainer.world_size if self.trainer is not None else 1
        if self.batch_size < 2 * ranks:
            raise ValueError(
                f"expected batch_size of at least {2 * ranks} for {ranks} ranks, got {self.batch_size}: "
                f"BatchNorm cannot normalise a training batch of one"
            )
        return self._batches(self.train, self.batch_size, shuffle=True, augment=self.augment)

    def val_dataloader(self) -> ResidentBatches | list[ResidentBatches]:
        """Return the validation images in order, or an empty list if none are held out."""
        return self._batches(self.val, self.eval_batch_size) if self.val_size else []

    def test_dataloader(self) -> ResidentBatches:
        """Return the test images in order."""
        return self._batches(self.test, self.eval_batch_size)

    def test_batches(self, device: torch.device | str = "cpu", limit: int | None = None) -> ResidentBatches:
        """Return the test images in order for an evaluation, unsharded, whatever trainer is attached.

        Args:
            device: where the batches appear.
            limit: how many images, from the first; None for all.

        Raises:
            ValueError: `limit` leaves no image.
        """
        return self._plain_batches(self.test, device, limit)

    def bank_batches(self, device: torch.device | str = "cpu", limit: int | None = None) -> ResidentBatches:
        """Return the training images as `test_batches` returns the test images: in order, not augmented."""
        return self._plain_batches(self.train, device, limit)

    def _plain_batches(self, split: Split, device: torch.device | str, limit: int | None) -> ResidentBatches:
        if limit is not None and limit < 1:
            raise ValueError(f"expected a limit of at least 1 image, got {limit}")
        return ResidentBatches(
            images=split.x[:limit],
            labels=split.y[:limit],
            batch_size=self.eval_batch_size,
            seed=self.seed,
            shuffle=False,
            augment="none",
            device=device,
        )

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Return the batch: it is on its device already."""
        return batch

    def __str__(self) -> str:
        """Return the arguments; Lightning's own text asks the loaders for what only a DataLoader has."""
        return repr(self)

    def _split(self, part: str) -> Split:
        if not self._splits:
            raise RuntimeError(f"dataset {self.name} is not open; call prepare_data() and setup() first")
        return self._splits[part]

    def _batches(
        self, split: Split, batch_size: int, *, shuffle: bool = False, augment: str = "none"
    ) -> ResidentBatches:
        trainer = self.trainer
        return ResidentBatches(
            images=split.x,
            labels=split.y,
            batch_size=batch_size,
            seed=self.seed,
            shuffle=shuffle,
            augment=augment,
            device=trainer.strategy.root_device if trainer is not None else "cpu",
            rank=trainer.global_rank if trainer is not None else 0,
            world_size=trainer.world_size if trainer is not None else 1,
        )


def _shape(image_shape: Sequence[int]) -> tuple[int, int, int]:
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"expected image_shape (channels, height, width), got {tuple(image_shape)}")
    channels, height, width = image_shape
    return channels, height, width
