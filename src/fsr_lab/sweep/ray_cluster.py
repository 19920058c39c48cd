"""The Ray cluster of a sweep: joined or started before any job, and asked whether it could ever run one."""

import socket
from contextlib import suppress
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

TARGET = "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher"
OBJECT_STORE_BYTES = 100 * 2**20
"""Of a cluster started here: jobs pass each other nothing, and a config is small."""

PATIENCE_SECONDS = 10


def join(cfg: DictConfig) -> None:
    """Connect this process to the sweep's cluster, which the launcher then finds.

    Args:
        cfg: a sweep's.

    Raises:
        ValueError: no cluster answers, or no node of it has what a job asks for.
    """
    import ray

    about = cast(dict[str, Any], OmegaConf.to_container(cfg.hydra.launcher.ray.init, resolve=True))
    address = about.pop("address", None)
    if address is None:
        about = {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False, **about}
    try:
        _knock(address)
        ray.init(address=address or "local", **about)
    except (OSError, RuntimeError, ValueError) as err:
        reason = next((line for line in str(err).splitlines() if line.strip()), type(err).__name__)
        raise ValueError(
            f"no Ray cluster answers at launcher.address={address} ({reason}); start one with ray start --head, or "
            "give launcher.address=null for one of this machine alone"
        ) from err
    remote = OmegaConf.to_container(cfg.hydra.launcher.ray.remote, resolve=True)
    try:
        check_room(cast(dict[str, Any], remote), ray.nodes())
    except ValueError:
        ray.shutdown()
        raise


def check_room(remote: dict[str, Any], nodes: list[dict[str, Any]]) -> None:
    """Refuse a job that no node could ever run, for which Ray would wait without end.

    Args:
        remote: arguments of ray.remote.
        nodes: as ray.nodes() tells of them.

    Raises:
        ValueError: as said.
    """
    named = {"CPU": remote.get("num_cpus"), "GPU": remote.get("num_gpus"), **(remote.get("resources") or {})}
    wanted = {name: amount for name, amount in named.items() if amount}
    there = [node["Resources"] for node in nodes if node["Alive"]]
    if any(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in there):
        return
    most = {name: max((node.get(name, 0) for node in there), default=0) for name in wanted}
    raise ValueError(
        f"a job asks for {_listed(wanted)}, and no node of this Ray cluster has that (at most {_listed(most)}); "
        "give launcher.cpus, launcher.gpus or launcher.resources"
    )


def leave() -> None:
    """Leave the cluster; one that was started here ends."""
    with suppress(ImportError):
        import ray

        ray.shutdown()


def _knock(address: str | None) -> None:
    """Raise at once where nobody listens at HOST:PORT, which Ray would try for minutes.

    Raises:
        OSError: nobody does.
    """
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS).close()


def _listed(amounts: dict[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in amounts.items())
