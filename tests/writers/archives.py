"""Small archives in the official layouts, and the real images to write them from: no tests by themselves."""

import functools
import io
import os
import pickle
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

REAL = Path(os.environ.get("FSR_REAL_IMAGES", Path(__file__).parents[3] / "shared" / "data"))
"""Beside the checkout, unless told otherwise."""


def unpacked(name, folder):
    """Unpack a real set to an .npz, or skip."""
    if not (REAL / "unpack.py").exists():
        pytest.skip(f"the real images are not here: no {REAL}")
    subprocess.run(
        [sys.executable, REAL / "unpack.py", "--out", folder, name], check=True, timeout=120, stdout=subprocess.DEVNULL
    )
    return Path(folder) / f"{name}.npz"


@functools.cache
def real(name):
    """Return {x_train (N, H, W, 3) uint8, y_train, x_test, y_test} of a real set, or skip."""
    with tempfile.TemporaryDirectory() as folder, np.load(unpacked(name, folder)) as stored:
        return dict(stored)


def drawn(num_classes, side, *, train=4, test=1):
    """Return random images, so many of each class and part, in the form of `real`."""
    rng = np.random.default_rng(0)

    def part(each):
        y = np.tile(np.arange(num_classes), each)
        return rng.integers(256, size=(len(y), side, side, 3), dtype=np.uint8), y

    (x_train, y_train), (x_test, y_test) = part(train), part(test)
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def rows(x):
    """Return images as CIFAR keeps them: (N, 3072), a channel after the other."""
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2).reshape(len(x), -1))


def tar(path, files, *, mode="w:gz"):
    """Write {name: contents} as a tar."""
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def cifar10_files(images):
    """Return the files of CIFAR-10's archive: the training part in five, and the test part."""
    files = {}
    for number, ids in enumerate(np.array_split(np.arange(len(images["y_train"])), 5), start=1):
        files[f"data_batch_{number}"] = (images["x_train"][ids], images["y_train"][ids])
    files["test_batch"] = (images["x_test"], images["y_test"])
    return {
        f"cifar-10-batches-py/{name}": pickle.dumps({"data": rows(x), "labels": y.tolist()}, protocol=2)
        for name, (x, y) in files.items()
    }


def cifar100_files(images):
    """Return the files of CIFAR-100's archive; every coarse label is 0."""
    files = {}
    for part in ("train", "test"):
        y = images[f"y_{part}"].tolist()
        content = {"data": rows(images[f"x_{part}"]), "fine_labels": y, "coarse_labels": [0] * len(y)}
        files[f"cifar-100-python/{part}"] = pickle.dumps(content, protocol=2)
    return files | {"cifar-100-python/meta": pickle.dumps({"fine_label_names": ["apple"]}, protocol=2)}


def svhn(folder, images, parts=("train", "test")):
    """Write SVHN's .mat files, where the digit zero is called 10."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts:
        x, y = images[f"x_{part}"], images[f"y_{part}"]
        content = {"X": x.transpose(1, 2, 3, 0), "y": np.where(y == 0, 10, y).astype(np.uint8)[:, None]}
        savemat(folder / f"{part}_32x32.mat", content, do_compression=True)
    return folder


def encoded(image, kind="JPEG"):
    """Return an (H, W, 3) image as an encoded picture."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}))
    return stream.getvalue()


def tiny_imagenet_files(images, wnids):
    """Return the files of Tiny ImageNet's archive; labels index the sorted wnids, wnids.txt is not sorted."""
    base, order = "tiny-imagenet-200", sorted(wnids)
    files = {f"{base}/wnids.txt": "\n".join(wnids[::-1]).encode(), f"{base}/words.txt": b"n0\tthing\n"}
    counts = dict.fromkeys(order, 0)
    for image, label in zip(images["x_train"], images["y_train"], strict=True):
        wnid = order[label]
        files[f"{base}/train/{wnid}/images/{wnid}_{counts[wnid]}.JPEG"] = encoded(image)
        counts[wnid] += 1
    lines = []
    for number, (image, label) in enumerate(zip(images["x_test"], images["y_test"], strict=True)):
        files[f"{base}/val/images/val_{number}.JPEG"] = encoded(image)
        lines.append(f"val_{number}.JPEG\t{order[label]}\t0\t0\t62\t62\n")
    files[f"{base}/val/val_annotations.txt"] = "".join(lines).encode()
    return files | {f"{base}/test/images/test_0.JPEG": encoded(images["x_test"][0])}


def zipped(path, files):
    """Write {name: contents} as a zip."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def extracted(folder, files):
    """Write {name: contents} below a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def pictures(folder, x, y, *, kind="PNG"):
    """Write a folder of pictures for each class, named c0, c1, …"""
    files = {
        f"c{label}/{place:05}.{kind.lower()}": encoded(image, kind)
        for place, (image, label) in enumerate(zip(x, y, strict=True))
    }
    return extracted(folder, files)
