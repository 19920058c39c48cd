"""Lightning's voice, lowered to what concerns the user."""

import logging
import warnings


def hush_lightning() -> None:
    """Let Lightning warn through our logging, once, and keep its advertisements to itself."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.WARNING)
    # of Lightning 2.6 about itself under torch 2.15
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* is not empty")  # that is what resuming is
    warnings.filterwarnings("ignore", message="The number of training batches")  # epochs are logged all the same
    warnings.filterwarnings("ignore", message="The `srun` command is available")  # ranks are started by torchrun
    # of Hydra 1.4 about building what a config names, which is what a config is for
    warnings.filterwarnings("ignore", message=r"hydra\.utils\.instantiate\(\) resolved")
