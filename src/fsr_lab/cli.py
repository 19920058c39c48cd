"""The command line: `fsr <verb>`, one Hydra config per verb."""

import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fsr_lab.arguments import config_folder, key_of
from fsr_lab.core.files import check_folder, write_text
from fsr_lab.core.suggest import unknown
from fsr_lab.positional import COMPARE, REPRODUCE, compare_arguments, reproduce_arguments
from fsr_lab.printing import draw_run, is_artefact, print_artefact, print_pages, print_report, show
from fsr_lab.session import FAILED, INTERRUPTED, Session, one_line, shows_trace
from fsr_lab.sweep.index import is_sweep, refresh
from fsr_lab.sweep.task import Verb
from fsr_lab.under_hydra import run_verb

if TYPE_CHECKING:
    from fsr_lab.core.cost import CostRow


def train(session: Session, cfg: DictConfig) -> None:
    """Fit, attack, draw, print."""
    from fsr_lab.callback.stop import InterruptedRunError
    from fsr_lab.engine import run as engine
    from fsr_lab.engine.lock import held
    from fsr_lab.engine.quiet import hush_lightning

    hush_lightning()
    run = Path(HydraConfig.get().runtime.output_dir)
    try:
        with held(run):
            engine.train(cfg, run, command=session.command, overrides=list(HydraConfig.get().overrides.task))
    except InterruptedRunError as err:
        again = "the same command continues it" if session.sweep else f"continue with: fsr train resume={run}"
        raise InterruptedRunError(f"{err}; {again}") from err
    draw_run(run, title=str(cfg.label))
    if session.sweep is None and any(run.glob("records/*.json")):
        tell_all(session, print_report(run))


def evaluate(session: Session, cfg: DictConfig) -> None:
    """Attack a trained network."""
    from fsr_lab.engine import evaluating
    from fsr_lab.engine import run as engine
    from fsr_lab.engine.chosen import chosen_network
    from fsr_lab.engine.lock import held
    from fsr_lab.engine.tracking import opened_trackers, tell_results

    cfg, name, weights = chosen_network(cfg, list(HydraConfig.get().overrides.task))
    evaluating.check_settings(cfg)
    shard = None if cfg.shard is None else evaluating.shard_of(cfg.shard)
    data = engine.opened_data(cfg)
    run = Path(HydraConfig.get().runtime.output_dir)
    # shards may share a directory, and keep nothing in it
    with held(run) if shard is None else nullcontext(), opened_trackers(cfg, run, "evaluate") as trackers:
        engine.write_config(cfg, run)
        record = evaluating.evaluate_weights(
            cfg, weights, data, name=name, command=session.command, run=run, shard=shard
        )
        if shard is not None:
            print(
                f"shard {cfg.shard}: {len(record)} samples; once all are done, the same without shard= gives the table"
            )
            return
        evaluating.check_attacked(record, cfg)
        record.save(run / engine.RECORDS, "evaluation")
        tell_results(trackers, {"evaluation": record}, run / engine.RECORDS)
    tell_all(session, print_report(run))


def doctor(session: Session, cfg: DictConfig) -> None:
    """Examine a trained network, review its records, and print what was found; or explain one check."""
    from fsr_lab.report.doctor import diagnosis, told

    if cfg.explain is not None:
        print(told(str(cfg.explain)))
        return
    from fsr_lab.engine import build
    from fsr_lab.engine import run as engine
    from fsr_lab.engine.chosen import chosen_network
    from fsr_lab.engine.consultation import consult
    from fsr_lab.engine.evaluating import best_device, loaded_network

    cfg, name, weights = chosen_network(cfg, list(HydraConfig.get().overrides.task))
    found = consult(
        loaded_network(cfg, weights), engine.opened_data(cfg), build.build_threat(cfg), name=name, samples=cfg.samples,
        device=best_device(cfg.device), run=None if cfg.run is None else Path(cfg.run), deep=cfg.deep,
    )  # fmt: skip
    show(diagnosis(*found))
    if found.has_failed:
        session.exit_code = max(session.exit_code, FAILED)


def analyze(session: Session, cfg: DictConfig) -> None:
    """Look into a trained network."""
    from fsr_lab.analysis import run as analysis
    from fsr_lab.engine import evaluating
    from fsr_lab.engine import run as engine
    from fsr_lab.engine.chosen import chosen_network
    from fsr_lab.engine.lock import held

    kind = HydraConfig.get().runtime.choices["analysis"]
    cfg, name, weights = chosen_network(cfg, list(HydraConfig.get().overrides.task))
    evaluating.check_settings(cfg)
    run = Path(HydraConfig.get().runtime.output_dir)
    data = engine.opened_data(cfg)
    with held(run):
        engine.write_config(cfg, run)
        found = analysis.analyze(cfg, weights, data, kind=kind, name=name, command=session.command)
        print(f"analysis: {analysis.keep(*found, run)}")
    if any(run.glob("records/**/*.json")):
        tell_all(session, print_report(run))


def export(session: Session, cfg: DictConfig) -> None:
    """Write a finished run's network in one or several formats, and tell the hash of each."""
    if cfg.run is None:
        raise ValueError("expected run=DIR, a finished run of fsr train, got none")
    from fsr_lab.export.run import network_of
    from fsr_lab.export.writing import export as write

    run = Path(cfg.run)
    network = network_of(
        run, checkpoint=cfg.checkpoint, average=cfg.average, name=cfg.name, licence=cfg.licence, paper=cfg.paper,
        records=[Path(folder) for folder in listed(cfg.records)],
    )  # fmt: skip
    for name in listed(cfg.format):
        done = write(network, name, Path(cfg.out or run / "export") / name)
        print(f"{name}: {done.folder}\n  sha256 {done.sha256}")


def listed(value: str | Sequence[str] | None) -> list[str]:
    """Return the names that an override gives: none, one, or a list."""
    return [value] if isinstance(value, str) else list(value or ())


def prepare(session: Session, cfg: DictConfig) -> None:
    """Prepare a dataset, or all of them, and say what lies where and how large it is."""
    if not cfg.all:
        print(prepared_row(cfg))
        return
    given = [word for word in HydraConfig.get().overrides.task if key_of(word) != "all"]
    if own := [word for word in given if word.startswith("dataset")]:
        raise ValueError(f"dataset=all prepares every dataset as it is configured, got {own[0]}; give one dataset")
    rows = []
    for name in sorted(path.stem for path in (config_folder() / "dataset").glob("*.yaml")):
        try:
            rows.append((name, prepared_row(compose("prepare", [*given, f"dataset={name}"]), is_one_of_all=True)))
        except Exception as err:
            session.fail(err)
            rows.append((name, f"failed: {one_line(err)}"))
    for name, row in rows:
        print(f"{name:<15} {row}")


def prepared_row(cfg: DictConfig, *, is_one_of_all: bool = False) -> str:
    """Prepare the config's dataset and return where it lies, its size, counts and source."""
    from fsr_lab.dataset.manifest import read_about
    from fsr_lab.dataset.prepare import load_prepared
    from fsr_lab.engine import build

    data = build.build_data(cfg)
    if is_one_of_all and data.needs_source and data.source is None:
        return f"left out: it is yours to give (fsr prepare dataset={data.name} dataset.source=...)"
    path = data.prepare(force=cfg.force)
    load_prepared(data.name, data.folder, data.parameters)  # verifies what was there already
    about = read_about(path.with_suffix(".json"))
    return (
        f"{path}: {path.stat().st_size / 2**20:.1f} MiB, "
        f"{about.train} training and {about.test} test images from {about.source}"
    )


def cost(session: Session, cfg: DictConfig) -> None:
    """Count what the backbones cost under the defences, and print the table."""
    from fsr_lab.callback.progress import track
    from fsr_lab.core.cost import CostRecord
    from fsr_lab.core.provenance import Provenance
    from fsr_lab.report.cost import EXPECTED, RECORD

    run = Path(HydraConfig.get().runtime.output_dir)
    pairs = list(product(names_of("model", cfg.models), names_of("defense", cfg.defenses)))
    rows = tuple(cost_row(model, defense, cfg) for model, defense in track(pairs, "cost", total=len(pairs)))
    about = Provenance.collect(command=session.command, seed=cfg.seed, hashes={})
    CostRecord(rows=rows, provenance=about).save(run / RECORD)
    folder = session.sweep or run
    if cfg.expected is not None and Path(cfg.expected).is_file():
        write_text(folder / EXPECTED, Path(cfg.expected).read_text())
    else:
        print(f"not compared with the paper: expected={cfg.expected} is not a file here", file=sys.stderr)
    if session.sweep is None:
        tell_all(session, print_report(folder))


def cost_row(model: str, defense: str, cfg: DictConfig) -> "CostRow":
    """Count one combination; one that cannot be built gives its reason instead."""
    from fsr_lab.core.cost import CostRow
    from fsr_lab.engine import build

    own = ("model", "models", "defense", "defenses")
    words = [word for word in HydraConfig.get().overrides.task if key_of(word) not in own]
    settings = tuple(word.lstrip("+") for word in words if key_of(word).startswith(("model.", "defense.")))
    row = CostRow(
        model=model, defense=defense, settings=settings, image_shape=tuple(cfg.dataset.image_shape),
        num_classes=cfg.dataset.num_classes,
    )  # fmt: skip
    try:
        composed = compose("cost", [*words, f"model={model}", f"defense={defense}"])
        if name := composed.model.get("name"):  # of a network in a library
            row = replace(row, model=f"{model}:{name}")
        return replace(row, cost=build.measure_cost(composed))
    except Exception as err:
        if shows_trace(err):
            raise
        return replace(row, reason=one_line(err))


def names_of(group: str, listed: Sequence[str] | None) -> list[str]:
    """Return the option of a group that was chosen, or those listed, or all there are: `none` first."""
    chosen = HydraConfig.get().runtime.choices[group]
    if chosen is not None:
        return [chosen]
    if listed is not None:
        return [listed] if isinstance(listed, str) else list(listed)
    known = GlobalHydra.instance().config_loader().get_group_options(group)
    return sorted(known, key=lambda name: (name != "none", name))


def report(session: Session, places: Sequence[Path], *, runs: Path | None = None, out: Path | None = None) -> None:
    """Write page, report and tables of an artefact, of a folder, or of several, and print the table.

    Args:
        session: told of what could not be read, which leaves the rest.
        places: an artefact folder, or runs, sweeps and what holds them.
        runs: of an artefact, the folder of runs to look into instead of what it keeps.
        out: where to write; None is the only place.
    """
    for place in places:
        if not place.is_dir():
            raise ValueError(f"no folder {place}; give a run, a sweep or an artefact folder")
    if out is not None:
        check_folder("out", out)
    if len(places) > 1 and out is None:
        raise ValueError(f"the report of {len(places)} places needs a folder of its own; give out=FOLDER")
    first = places[0]
    if len(places) == 1 and is_artefact(first):
        problems = print_artefact(first, runs=runs, out=out)
    elif runs is not None:
        raise ValueError(f"runs= is for an artefact folder, and {first} has no manifest.yaml with panels")
    else:
        for run in sorted(path.parent for place in places for path in place.glob("**/samples.npz")):
            draw_run(run, title=run.name)
        for place in places:
            if is_sweep(place):
                refresh(place, search=True)
        problems = print_pages(first, ()) if out is None else print_pages(out, places)
    tell_all(session, problems)


def tell_all(session: Session, problems: Sequence[str]) -> None:
    """Print what a report had to leave out, a line of cause and cure each, and set the exit code."""
    for problem in problems:
        session.tell(ValueError(problem))


VERBS: dict[str, tuple[Verb, str]] = {
    "train": (train, "train a network by a strategy, with or without a defence, and attack it"),
    "evaluate": (evaluate, "attack a trained network and print its table"),
    "doctor": (doctor, "examine a trained network for what makes robustness numbers wrong"),
    "analyze": (analyze, "look into a trained network: masks, features, attention maps"),
    "export": (export, "write a trained network for other people's tools, and check that it loads back"),
    "prepare": (prepare, "fetch, verify and convert a dataset"),
    "cost": (cost, "count parameters, FLOPs and MACs of every backbone under every defence"),
}
REPORT = "make the page and tables of an artefact folder, a run, a sweep, or several of them"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code: 0, 1 of a failed check, 2 of a wrong input, 130 of an interrupted run."""
    argv = list(sys.argv[1:] if argv is None else argv)
    session = Session(shlex.join(["fsr", *argv]))
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        from fsr_lab import __version__

        print(f"fsr-lab {__version__}")
        return 0
    verb, rest = argv[0], argv[1:]
    try:
        if verb == "report":
            report_arguments(session, rest)
        elif verb == "compare":
            compare_arguments(rest)
        elif verb == "reproduce":
            session.exit_code = reproduce_arguments(rest, session.command)
        elif verb in VERBS:
            run_verb(session, verb, VERBS[verb][0], rest)
        else:
            raise ValueError(unknown("verb", verb, [*VERBS, "report", "compare", "reproduce"]))
    except Exception as err:
        session.fail(err)
    except KeyboardInterrupt:
        again = "" if session.sweep is None else "; the same command continues the sweep"
        print(f"fsr: interrupted{again}", file=sys.stderr)
        return INTERRUPTED
    return session.exit_code


def report_arguments(session: Session, argv: Sequence[str]) -> None:
    """Parse `fsr report FOLDER... [runs=FOLDER] [out=FOLDER]`, which needs no config."""
    given = (word.partition("=") for word in argv if word.startswith(("runs=", "out=")))  # a folder may be called runs
    options = {key: Path(text) for key, _, text in given}
    places = [word for word in argv if not word.startswith(("-", "runs=", "out="))]
    if not places or any(word.startswith("-") for word in argv):
        print(f"fsr report FOLDER... [runs=FOLDER] [out=FOLDER]: {REPORT}")
        if argv and argv[0] not in ("-h", "--help"):
            raise ValueError(f"expected a folder, got {list(argv)}")
        return
    report(session, [Path(place) for place in places], **options)


def usage() -> str:
    """Return the verbs, one line each."""
    lines = ["fsr: adversarial training with Feature Separation and Recalibration", ""]
    lines += [f"  fsr {name:<9} {text}" for name, (_, text) in VERBS.items()]
    lines += [
        f"  fsr {'report':<9} {REPORT}",
        f"  fsr {'compare':<9} {COMPARE}",
        f"  fsr {'reproduce':<9} {REPRODUCE}",
        "",
        "fsr <verb> --help lists the verb's groups and options.",
    ]
    return "\n".join(lines)
