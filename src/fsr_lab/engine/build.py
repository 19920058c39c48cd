"""From a composed config to objects; below this file everything takes plain arguments."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning import Callback, Trainer
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from fsr_lab.core.cost import Cost
from fsr_lab.core.crafting import Policy
from fsr_lab.core.threat import Threat
from fsr_lab.core.types import Attack, Classifier, Modifier, Progress, Strategy
from fsr_lab.core.units import whole
from fsr_lab.dataset.base import ImageDataModule
from fsr_lab.engine.checkpoints import CONFIG, AtomicCheckpointIO, checkpoint_path, load_weights
from fsr_lab.engine.module import RobustClassifier, total
from fsr_lab.engine.profile import StepProfiler
from fsr_lab.evaluation.cost import measure
from fsr_lab.model.defended import DefendedModel, DefenseBuilder, attach
from fsr_lab.model.library_model import expand_declared
from fsr_lab.model.normalize import Normalize
from fsr_lab.model.points import activation_layers, feature_points

POINTS = ("tap", "stages", "last_blocks", "activations", "convs")
"""Keys of a model's config that name its points; defences interpolate them, the constructor does not see them."""
AROUND = ("layout", "normalize", "functional")
"""Keys of a model's config that say how its defences and its images are put to it, and which of its modules the code
that the paper measured calls as functions, so that the paper's FLOPs leave them out; not the constructor's either."""


def build_data(cfg: DictConfig) -> ImageDataModule:
    """Build the data module; `recipe` is for the rest of the config to read."""
    return cast(ImageDataModule, instantiate(_without(cfg.dataset, ("recipe",)), _convert_="all"))


def build_model(cfg: DictConfig) -> DefendedModel:
    """Build the backbone, from the run's seed, with its defence attached."""
    torch.manual_seed(whole("seed", cfg.seed))
    backbone = instantiate(backbone_node(cfg), _convert_="all")
    if cfg.model.get("normalize"):
        Normalize(**OmegaConf.to_container(cfg.model.normalize, resolve=True)).put_on(backbone)  # type: ignore[arg-type]
    image_shape = cast(tuple[int, int, int], tuple(cfg.dataset.image_shape))
    sites = defense_sites(cfg, backbone, image_shape)
    defenses: dict[str, DefenseBuilder] = {point: instantiate(node, _convert_="all") for point, node in sites.items()}
    return attach(backbone, defenses, image_shape, cfg.dataset.num_classes, cfg.model.get("layout") or "nchw")


def backbone_node(cfg: DictConfig) -> dict[str, Any]:
    """Return the plain node of the backbone's constructor alone."""
    return _without(cfg.model, (*POINTS, *AROUND))


def measure_cost(cfg: DictConfig) -> Cost:
    """Count what a config's network costs; built on the meta device, it takes no memory and computes nothing."""
    try:
        with torch.device("meta"):
            model = build_model(cfg)
    except (RuntimeError, InstantiationException):
        # a constructor that computes something needs real tensors; what is wrong otherwise is so again
        model = build_model(cfg)
    image_shape = cast(tuple[int, int, int], tuple(cfg.dataset.image_shape))
    return measure(model, image_shape, functional=cfg.model.get("functional") or ())


def build_module(cfg: DictConfig, model: DefendedModel) -> RobustClassifier:
    """Build the LightningModule that trains a model, which is laid out and compiled in place as the config says."""
    if cfg.channels_last:
        model.to(memory_format=torch.channels_last)
    compile_model(cfg, model)
    return RobustClassifier(
        model=model,
        strategy=build_strategy(cfg),
        val_attack=instantiate(cfg.val_attack, _convert_="all"),
        optimizer=instantiate(cfg.optim.optimizer, _convert_="all"),
        scheduler=instantiate(cfg.optim.scheduler, _convert_="all"),
        scheduler_interval=cfg.optim.interval,
        modifiers=[modifier for modifier in build_modifiers(cfg) if isinstance(modifier, Modifier)],
        num_classes=cfg.dataset.num_classes,
        seed=cfg.seed,
        decay_all=cfg.optim.decay_all,
    )


def compile_model(cfg: DictConfig, model: DefendedModel) -> None:
    """Compile a model in place as `cfg.compile` says, if it does."""
    if cfg.compile.backend is not None:
        torch.compiler.reset()  # graphs of a network before it in this process count towards Dynamo's limit
        model.compile(**cast(dict[str, Any], OmegaConf.to_container(cfg.compile, resolve=True)))


def build_strategy(cfg: DictConfig) -> Strategy:
    """Build the strategy with its attack."""
    return cast(Strategy, instantiate(cfg.strategy, _convert_="all"))


def build_modifiers(cfg: DictConfig) -> list[Modifier | Callback]:
    """Build what acts around the optimiser step: modifiers, or callbacks that average."""
    return [instantiate(node, _convert_="all") for node in (cfg.get("modifier") or {}).values()]


def full_label(cfg: DictConfig) -> str:
    """Return the row's name with what else makes the method: "cat(trades)+fsr+awp".

    Named are the strategy under another one, unless it is AT, and the modifiers that change the training; averages
    have rows of their own.
    """
    base = str((cfg.strategy.get("base") or {}).get("_target_", "at.AT")).split(".")[-2]
    head, plus, rest = str(cfg.label).partition("+")
    label = cfg.label if base == "at" or base in head else f"{head}({base}){plus}{rest}"
    built = zip(cfg.get("modifier") or {}, build_modifiers(cfg), strict=True)
    acting = [str(name) for name, modifier in built if isinstance(modifier, Modifier)]
    return "+".join([label, *(name for name in acting if name not in label)])


def tracker_nodes(cfg: DictConfig) -> dict[str, dict[str, Any]]:
    """Return the plain configs of all loggers but the CSV's, by name: those that `tracking` puts behind a thread."""
    nodes = cast(dict[str, Any], OmegaConf.to_container(cfg.get("logger") or OmegaConf.create(), resolve=True))
    return {name: node for name, node in nodes.items() if node and not _is_csv(node)}


def build_logger(node: Mapping[str, Any]) -> Logger:
    """Build a logger from its plain config."""
    return cast(Logger, instantiate(node, _convert_="all"))


def build_trainer(cfg: DictConfig, trackers: Sequence[Logger] = (), watch: Sequence[Callback] = ()) -> Trainer:
    """Build Lightning's Trainer with the configured callbacks and CSV.

    Args:
        cfg: the run's.
        trackers: loggers beside the CSV.
        watch: callbacks beside the configured ones.
    """
    if cfg.trainer.max_epochs is None or cfg.trainer.max_epochs < 1:
        raise ValueError(f"expected trainer.max_epochs of at least 1, got {cfg.trainer.max_epochs}")
    if cfg.trainer.accelerator in ("gpu", "cuda") and not torch.accelerator.is_available():
        raise ValueError(
            f"trainer.accelerator is {cfg.trainer.accelerator}, and torch {torch.__version__} finds none here; train "
            "with trainer=cpu (or cpu_bf16), or install a torch build for this machine's GPU and driver"
        )
    # averages first: they must have seen a step before a callback saves it
    callbacks = [modifier for modifier in build_modifiers(cfg) if isinstance(modifier, Callback)]
    callbacks += [cast(Callback, instantiate(node)) for node in (cfg.callback or {}).values() if node]
    callbacks += watch
    loggers = [build_logger(node) for node in (cfg.logger or {}).values() if node and _is_csv(node)]
    loggers += trackers
    # an empty validation loader would be a warning at every run without a held-out split
    given: dict[str, Any] = {} if cfg.dataset.val_size else {"limit_val_batches": 0}
    if cfg.trainer.get("profiler") == "steps":
        given["profiler"] = StepProfiler()
    # not Slurm's, which Lightning would find first: ranks come from torchrun, and jobs are queued again by the sweep
    environment = TorchElasticEnvironment() if TorchElasticEnvironment.detect() else LightningEnvironment()
    plugins = [AtomicCheckpointIO(), environment]
    return cast(
        Trainer,
        instantiate(
            cfg.trainer,
            callbacks=callbacks,
            logger=loggers or False,
            plugins=plugins,
            **given,
        ),
    )


def build_attacks(cfg: DictConfig, device: torch.device | None = None) -> dict[str, Attack]:
    """Build the evaluation's attacks by name; a `source` that is a path becomes the network there, on the device.

    That goes for an attack inside another one, too.
    """

    @cache
    def opened(source: str) -> tuple[Classifier, str]:
        network, label = build_surrogate(cfg, Path(source))
        return network.to(device), label

    plain = cast(dict[str, Any], OmegaConf.to_container(cfg.evaluation.attacks, resolve=True))
    return {name: assembled(node, opened) for name, node in plain.items()}


def assembled(node: dict[str, Any], opened: Callable[[str], tuple[Classifier, str]]) -> Any:
    """Instantiate a node from the inside out, with what `opened` gives for each `source` in it, and its label.

    Called, not merged into the node: Hydra would copy a network that it is given.
    """
    given = {key: assembled(part, opened) for key, part in node.items() if isinstance(part, dict)}
    if node.get("source"):
        given |= dict(zip(("source", "label"), opened(node["source"]), strict=True))
    rest = {key: value for key, value in node.items() if key not in given}
    return instantiate(rest, _convert_="all", _partial_=True)(**given) if "_target_" in node else rest | given


def sources_of(node: Any) -> Iterator[str]:
    """Yield every `source` in the plain node of an attack, or of several."""
    if isinstance(node, dict):
        if node.get("source"):
            yield str(node["source"])
        for part in node.values():
            yield from sources_of(part)


def build_attack(node: DictConfig) -> Attack:
    """Build one attack that crafts on the attacked network itself."""
    return cast(Attack, instantiate(node, _convert_="all"))


def build_part(node: DictConfig) -> Any:
    """Build what a node says, whatever it is: parts of layers above this one."""
    return instantiate(node, _convert_="all")


def build_surrogate(cfg: DictConfig, path: Path) -> tuple[DefendedModel, str]:
    """Build what transfer attacks craft on, with what to call it.

    Args:
        cfg: composed as for `fsr evaluate`; the data are the target's.
        path: a run directory of `fsr train` (its last checkpoint), a checkpoint in one, or any other file with a
            state dict of the network `cfg.surrogate_model`.

    Raises:
        ValueError: it is none of these, or a network for other images or classes.
    """
    if not path.exists():
        raise ValueError(f"no surrogate at {path}; give a run of fsr train, a checkpoint in one, or a file of weights")
    run = path if path.is_dir() else path.parent.parent
    is_run = path.is_dir() or (run / CONFIG).is_file()
    own = stored_config(run) if is_run else _bare_network(cfg)
    for key in ("num_classes", "image_shape"):
        if own.dataset[key] != cfg.dataset[key]:
            raise ValueError(
                f"expected a surrogate of {key} {cfg.dataset[key]}, the attacked network's, got {own.dataset[key]} in "
                f"{path}; give one that was trained on {cfg.dataset.name}"
            )
    weights = checkpoint_path(run, "last") if path.is_dir() else path
    network = build_model(own)
    try:
        load_weights(network, weights)
    except ValueError as err:
        cure = f" (model@surrogate_model=NAME), on the {cfg.dataset.num_classes} classes of {cfg.dataset.name}"
        raise ValueError(f"surrogate: {err}" + ("" if is_run else cure)) from err
    # weights do not tell all: a temperature or a normalisation makes another network of the same ones
    about = [OmegaConf.to_container(own[section], resolve=True) for section in ("model", "defense")]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]
    return network, f"{f'{own.label} ({weights.stem})' if is_run else path.name}, config {digest}"


def stored_config(run: Path) -> DictConfig:
    """Return what a run was trained from.

    Raises:
        ValueError: the folder is no run.
    """
    if not (run / CONFIG).is_file():
        raise ValueError(f"{run} is not a run of fsr train: it has no {CONFIG}")
    return cast(DictConfig, OmegaConf.load(run / CONFIG))


def build_threat(cfg: DictConfig) -> Threat:
    """Build the threat set that an evaluation measures against."""
    return cast(Threat, instantiate(cfg.threat))


def build_policy(cfg: DictConfig) -> Policy:
    """Build the policy under which an evaluation crafts."""
    return cast(Policy, instantiate(cfg.crafting.evaluate))


def bare_step(
    cfg: DictConfig, progress: Progress = Progress(epoch=0, max_epochs=1, step=0)
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return one complete optimiser step, crafting included, outside any Trainer: what benches time.

    The function takes x (N, C, H, W) in [0, 1] and y (N,), updates the model it closes over, and returns the loss.
    Precision and compilation are the config's. Callbacks, weight averaging among them, are the Trainer's and do not
    run.

    Args:
        cfg: composed as for `fsr train`.
        progress: where training is taken to stand, for curricula.
    """
    module = build_module(cfg, build_model(cfg))
    module.model.train()
    optimizer = module.build_optimizer(module.parameter_groups())
    is_mixed = cfg.trainer.precision == "bf16-mixed"

    def step(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=is_mixed):
            loss = total(module.training_output(x, y, progress))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for modifier in module.modifiers:
            modifier.after_optimizer_step(module)
        return loss.detach()

    return step


def _bare_network(cfg: DictConfig) -> DictConfig:
    """Return the config of the network that a surrogate's weights are of."""
    if "surrogate_model" not in cfg:  # fsr train has none: a file of weights is rarely its surrogate
        raise ValueError("a surrogate that is a file of weights needs its network; give +model@surrogate_model=NAME")
    plain = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    kept = {key: plain[key] for key in ("seed", "dataset")}
    return OmegaConf.create(kept | {"model": plain["surrogate_model"], "defense": {"at": None}})


def defense_sites(cfg: DictConfig, backbone: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, dict[str, Any]]:
    """Return {point: the plain node of the defence there}.

    `defense.at` is a point, a list of points, or {point: extra constructor arguments}.

    `defense.place` ("in", "instead") applies to points that name none; `defense.sites` gives extra arguments to each
    point of a list in turn, the last of them to all that are left.
    """
    node = cast(dict[str, Any], OmegaConf.to_container(cfg.defense, resolve=True))
    at = node["at"]
    if "_target_" not in (node.get("module") or {}):  # none; an experiment may have left it options of another
        return {}
    if not at:
        replaces = node.get("place") == "instead"
        near = activation_layers(backbone) if replaces else feature_points(backbone, image_shape)
        raise ValueError(
            f"this model's config names no layer for the defence; give defense.at=LAYER, such as one of {near}"
        )
    if not isinstance(at, Mapping):
        points = [name for point in ([at] if isinstance(at, str) else at) for name in expand_declared(backbone, point)]
        sites = node.get("sites") or [{}]
        at = {point: sites[min(index, len(sites) - 1)] for index, point in enumerate(points)}
    place = f":{node['place']}" if node.get("place") else ""
    return {
        str(point) if ":" in str(point) else f"{point}{place}": node["module"] | (extra or {})
        for point, extra in at.items()
    }


def _is_csv(node: Mapping[str, Any]) -> bool:
    """Tell whether a logger writes the run directory's own metrics: these are written at once, and missed if not."""
    return str(node.get("_target_", "")).endswith(".CSVLogger")


def _without(node: DictConfig, keys: tuple[str, ...]) -> dict[str, Any]:
    plain = cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))
    return {key: value for key, value in plain.items() if key not in keys}
