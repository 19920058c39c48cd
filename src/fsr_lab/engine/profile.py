"""Where a training step's time goes: `fsr train trainer=profile`."""

import time
from collections import defaultdict

import torch
from lightning.pytorch.profilers import Profiler

PARTS = {
    "crafting": "the attack on the batch",
    "training pass": "forward, backward, optimiser",
    "data": "next batch, augmentation included",
    "logging": "metrics, loggers, callbacks",
    "Lightning": "the loop around them",
}
FETCH, BATCH = "train_dataloader_next", "run_training_batch"


class StepProfiler(Profiler):
    """Times the parts of each training step, and waits for the device at every border so that each pays its own.

    Waiting costs a little overlap: profiled steps are slower than others, their shares are what counts.

    Args:
        warmup: steps left out at first, while kernels are chosen and memory is found.
    """

    def __init__(self, warmup: int = 3) -> None:
        super().__init__()
        self.warmup = warmup
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.steps = 0
        self._step: defaultdict[str, float] = defaultdict(float)
        self._fetches = 0
        self._fetched_at: float | None = None
        self._open: dict[str, float] = {}

    def start(self, action_name: str) -> None:
        """Begin an action; Lightning and the training step name them."""
        if _part_of(action_name) is None:
            return
        now = _settled_time()
        if action_name.endswith(FETCH):
            self._count_step(now)
        self._open[action_name] = now

    def stop(self, action_name: str) -> None:
        """End an action."""
        part = _part_of(action_name)
        if part is not None and action_name in self._open:
            self._step[part] += _settled_time() - self._open.pop(action_name)
        if action_name == "run_training_epoch":
            self._fetched_at = None  # validation lies between this epoch's last step and the next one's first

    def shares(self) -> dict[str, float]:
        """Return milliseconds a step by part, in the order of `PARTS`; empty before anything was measured."""
        if not self.steps:
            return {}
        total, batch = self.seconds["step"], self.seconds["batch"]
        inside = self.seconds["crafting"] + self.seconds["logged"]
        found = {
            "crafting": self.seconds["crafting"],
            "training pass": batch - inside,
            "data": self.seconds["data"],
            "logging": self.seconds["logged"] + self.seconds["hooks"],
        }
        found["Lightning"] = max(total - sum(found.values()), 0.0)
        return {part: 1000 * seconds / self.steps for part, seconds in found.items()}

    def summary(self) -> str:
        """Return the table, one part a line."""
        shares = self.shares()
        if not shares:
            return f"no step was profiled: train for more than {self.warmup + 1} steps"
        whole = sum(shares.values())
        lines = [f"a training step takes {whole:.1f} ms (mean of {self.steps}):"]
        lines += [
            f"  {part:<14} {value:9.2f} ms  {100 * value / whole:5.1f} %   {PARTS[part]}"
            for part, value in shares.items()
        ]
        return "\n".join(lines)

    def _count_step(self, now: float) -> None:
        """Count the step that ends here; it lasts from one fetch to the next, and none across an epoch's end."""
        if self._fetched_at is not None and self._fetches > self.warmup:
            for part, seconds in {**self._step, "step": now - self._fetched_at}.items():
                self.seconds[part] += seconds
            self.steps += 1
        self._step.clear()
        self._fetches += 1
        self._fetched_at = now


def _part_of(action: str) -> str | None:
    if action.endswith(FETCH):
        return "data"
    if action == BATCH:
        return "batch"
    if action == "crafting":
        return "crafting"
    if action == "logging":
        return "logged"
    return "hooks" if action.endswith(("on_train_batch_start", "on_train_batch_end")) else None


def _settled_time() -> float:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()
