"""A verb under Hydra: a question about its config, one run, or a sweep."""

import os
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NoReturn

from hydra._internal.hydra import Hydra
from hydra._internal.utils import _run_hydra, create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig

from fsr_lab.arguments import CONFIGS, translate
from fsr_lab.session import Session
from fsr_lab.sweep.launching import run_sweep
from fsr_lab.sweep.task import Verb

PLACE = f"pkg://{CONFIGS}"


def run_verb(session: Session, verb: str, work: Verb, argv: Sequence[str]) -> None:
    """Hand Hydra its own argument list; `sys.argv` stays whole.

    Args:
        session: learns the exit code, and the sweep's folder if it is one.
        verb: whose config it is.
        work: what is done with the config.
        argv: the words after the verb.
    """
    parser = get_args_parser()
    parser.error = partial(_refuse, verb)  # type: ignore[method-assign]
    args = parser.parse_args(translate(verb, argv))
    with _whole_errors():
        if args.help or args.hydra_help or args.cfg or args.info or args.shell_completion:
            run = _single(session, work)
            _run_hydra(args=args, args_parser=parser, task_function=run, config_path=PLACE, config_name=verb)
            return
        with _composer(verb, args) as hydra:
            cfg = hydra.compose_config(verb, args.overrides, RunMode.MULTIRUN, validate_sweep_overrides=False)
            if args.multirun or cfg.hydra.mode == RunMode.MULTIRUN:
                run_sweep(hydra, verb, work, args.overrides, session)
            else:
                hydra.run(verb, _single(session, work), args.overrides)


def _single(session: Session, work: Verb) -> Callable[[DictConfig], None]:
    """Return the task of one run, whose error is told in one line."""

    def run(cfg: DictConfig) -> None:
        try:
            work(session, cfg)
        except Exception as err:
            session.fail(err)

    return run


def _refuse(verb: str, message: str) -> NoReturn:
    """Refuse an option in one line, where argparse would print its usage too."""
    raise ValueError(f"{message}; fsr {verb} --help lists what there is")


@contextmanager
def _whole_errors() -> Iterator[None]:
    """Let Hydra raise, where it would print pages and exit: its errors become our one line."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]


@contextmanager
def _composer(verb: str, args: Namespace) -> Iterator[Hydra]:
    """Yield Hydra over our configs and whatever --config-dir adds, as the one that `compose` asks."""
    path = create_config_search_path(PLACE)
    if args.config_dir is not None:
        folder = Path(args.config_dir).absolute()
        if not folder.is_dir():
            raise ValueError(f"no folder {folder}; --config-dir adds one with options of groups")
        path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
    try:
        yield Hydra.create_main_hydra2(task_name=verb, config_search_path=path)
    finally:
        GlobalHydra.instance().clear()
