"""What may break under a run, for children of the warm process: the kernel refuses, nothing is pretended."""

import builtins
import ctypes
import os
import resource
from pathlib import Path

from lightning.fabric.loggers import csv_logs

import fsr_lab.core.files
from fsr_lab.engine.module import RobustClassifier


def full(name, after):
    """Let the disk be full for a file of this name, once it was written so often."""
    opened = []

    def open_there(path, mode):
        if Path(path).name.startswith(f".{name}."):
            opened.append(path)
            if len(opened) > after:
                return builtins.open("/dev/full", mode)
        return builtins.open(path, mode)

    fsr_lab.core.files.open = open_there


def full_for_metrics():
    """Let the disk be full for metrics.csv."""
    original = csv_logs._ExperimentWriter.__init__

    def start(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.metrics_file_path = "/dev/full"

    csv_logs._ExperimentWriter.__init__ = start


def small_files(most):
    """Let no file be larger than so many bytes, until `small_files_no_more`."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def small_files_no_more():
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def read_only(folder, step):
    """Let a folder be read-only from a training step on, from the start if that is below 0; for root, too."""
    original = RobustClassifier.training_step

    def training_step(self, batch, batch_idx):
        if self.global_step == step:
            protect(folder)
        return original(self, batch, batch_idx)

    if step < 0:
        protect(folder)
    RobustClassifier.training_step = training_step


def protect(folder):
    os.chmod(folder, 0o555)
    give_up_root()


def give_up_root():
    """Give up the right to write where permissions forbid it, for good."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # of capabilities, version 3; of this process
    ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)())
