"""Tiny ImageNet from its official archive, a mirror, or an .npz; its validation folder is the test part."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fsr_lab.dataset.archive import Limits, read_members
from fsr_lab.dataset.arrays import Array, Arrays, counted
from fsr_lab.dataset.base import ImageDataModule
from fsr_lab.dataset.download import fetch, md5_of
from fsr_lab.dataset.npz import read_npz
from fsr_lab.dataset.pictures import decode
from fsr_lab.dataset.progress import progress

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
"""Nobody at the source publishes one; this is what Avalanche and others that fetch from it expect."""

BASE, ARCHIVE = "tiny-imagenet-200", "tiny-imagenet-200.zip"
LIMITS = Limits(member=8 << 20, total=1 << 30)
"""The official pictures have 2 kB each, the largest text file 2.6 MB, all together 240 MB."""

_CURE = f"dataset.source=/path/to/{ARCHIVE}, its extracted folder, or an .npz"
_TRAIN = re.compile(r"train/(n\d+)/images/\1_(\d+)\.JPEG")
_VAL = re.compile(r"val/images/(val_(\d+)\.JPEG)")
_WNIDS, _ANNOTATIONS = "wnids.txt", "val/val_annotations.txt"


@dataclass(kw_only=True, eq=False)
class TinyImageNet(ImageDataModule):
    """Tiny ImageNet visual recognition challenge (Le and Yang, 2015): 200 classes of ImageNet at 64x64 pixels.

    The official test part has no labels, so its validation part, labelled by val_annotations.txt, is the test part
    here. Classes are numbered in the order of their sorted wnids, as an image folder would number them; wnids.txt
    itself is not sorted. Sources as for CIFAR-10.

    Args:
        verify: whether anything but the true set is refused, by md5 of the archive; of an extracted folder or an
            .npz, where decoders differ in the last bit, the count of images of each class is checked.
        mirrors: addresses of folders that hold the official archive under its name, in the order of trust.
    """

    verify: bool
    mirrors: Sequence[str]

    def build_arrays(self) -> Arrays:
        """Read the images from the first source that there is."""
        packed = self.source if self.source is not None and self.source.suffix == ".npz" else None
        arrays = self._decoded() if packed is None else read_npz(packed)
        return counted(arrays, name=self.name, train=[500] * 200, test=[50] * 200) if self.verify else arrays

    def _decoded(self) -> Arrays:
        source, origin = self.source, str(self.source)
        if source is None:
            urls = [URL, *(f"{mirror}/{ARCHIVE}" for mirror in self.mirrors)]
            source, origin = fetch(self.folder, ARCHIVE, urls, md5=MD5, offline=_CURE)
        if self.verify and source.is_file() and (got := md5_of(source)) != MD5:
            raise ValueError(
                f"{source} is not Tiny ImageNet: expected md5 {MD5}, got {got}; "
                f"fetch it again, or set dataset.verify=false if it is meant to differ"
            )
        stored = dict(self._members(source, (_WNIDS, _ANNOTATIONS).__contains__))
        if missing := [name for name in (_WNIDS, _ANNOTATIONS) if name not in stored]:
            raise FileNotFoundError(f"{source} lacks {BASE}/{missing[0]}; give {_CURE}")
        wnids = sorted(_text(stored, _WNIDS, source).split())
        if len(wnids) != self.num_classes:
            raise ValueError(
                f"{source}: expected {self.num_classes} classes in {_WNIDS}, got {len(wnids)}; "
                f"give {_CURE}, or set dataset.num_classes"
            )
        classes = {wnid: label for label, wnid in enumerate(wnids)}
        annotated = _annotations(_text(stored, _ANNOTATIONS, source), classes, source)
        train: list[tuple[int, int, Array]] = []
        test: list[tuple[int, int, Array]] = []
        wanted = len(annotated) * 11  # ten training pictures for each, if it is the official set
        with progress(f"decoding {BASE}", wanted) as show:
            for name, data in self._members(source, lambda name: bool(_TRAIN.fullmatch(name) or _VAL.fullmatch(name))):
                picture = decode(data, f"{name} of {source}", self.image_shape, resize=False, cure=f"give {_CURE}")
                if match := _TRAIN.fullmatch(name):
                    train.append((_label(match[1], classes, source), int(match[2]), picture))
                elif match := _VAL.fullmatch(name):
                    if match[1] not in annotated:
                        raise ValueError(f"{source}: expected a label of {match[1]} in {_ANNOTATIONS}; give {_CURE}")
                    test.append((annotated[match[1]], int(match[2]), picture))
                show(1)
        if len(test) != len(annotated):
            raise ValueError(
                f"{source}: expected a picture for each of {len(annotated)} labels of {_ANNOTATIONS}, "
                f"got {len(test)}; give {_CURE}"
            )
        if not train or not test:
            raise ValueError(f"{source}: expected pictures in train and val, got none; give {_CURE}")
        train.sort(key=lambda found: found[:2])
        test.sort(key=lambda found: found[1])
        return Arrays(*_stacked(train), *_stacked(test), source=origin)

    def _members(self, source: Path, is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
        return read_members(source, BASE, is_wanted, limits=LIMITS, cure=_CURE)


def _text(stored: Mapping[str, bytes], name: str, source: Path) -> str:
    try:
        return stored[name].decode()
    except UnicodeDecodeError as err:
        raise ValueError(f"{source} is damaged: expected text in {name}, got {err}; give {_CURE}") from err


def _annotations(text: str, classes: Mapping[str, int], source: Path) -> dict[str, int]:
    """Return {picture: label} of lines "val_0.JPEG wnid x0 y0 x1 y1"."""
    found = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if len(words) < 2:
            raise ValueError(
                f"{source}: expected a picture and its wnid in line {number} of {_ANNOTATIONS}, got {line!r}"
            )
        found[words[0]] = _label(words[1], classes, source)
    return found


def _label(wnid: str, classes: Mapping[str, int], source: Path) -> int:
    if wnid not in classes:
        raise ValueError(f"{source}: expected classes of {_WNIDS}, got {wnid!r}; give {_CURE}")
    return classes[wnid]


def _stacked(found: Sequence[tuple[int, int, Array]]) -> tuple[Array, Array]:
    return np.stack([x for *_, x in found]), np.array([y for y, *_ in found], dtype=np.int64)
