"""The command line's short forms, spelt out for Hydra."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from omegaconf import OmegaConf

CONFIGS = "fsr_lab.conf"
"""The package that the options of all groups lie in."""
OVERRIDES = "overrides.yaml"
"""Where a run directory keeps what it was started with."""


def translate(verb: str, argv: Sequence[str]) -> list[str]:
    """Spell out the command line's short forms.

    `train attack=X` is the training attack, `train strategy.base=X` the strategy under fat, cat and s2o;
    `evaluate attack=[X,Y]` replaces the set; `prepare dataset=all` is every dataset in turn; `cost model=X,Y` a table
    of both; `doctor --deep` is deep=true; `train resume=DIR` repeats the overrides that DIR was started
    with, in that directory.
    """
    words = []
    for word in argv:
        if verb == "train" and word.startswith("attack="):
            words.append(f"attack@strategy.{'base.' if has_base(argv) else ''}{word}")
        elif verb == "train" and word.startswith("strategy.base="):
            words.append("strategy@" + word)
        elif verb in ("train", "evaluate") and word.lstrip("+").startswith("surrogate_model="):
            added = "+" if verb == "train" else ""
            raise ValueError(f"a network is an option of its group; give {added}model@{word.lstrip('+')}")
        elif verb == "doctor" and word == "--deep":
            words.append("deep=true")
        elif verb == "prepare" and word == "dataset=all":
            words.append("all=true")
        elif verb == "evaluate" and word.startswith("attack="):
            names = [name.strip() for name in word[len("attack=") :].strip("[]").split(",") if name.strip()]
            if not names:
                raise ValueError("attack= names no attack; give one, or a list such as attack=[fgsm,pgd20]")
            words += ["evaluation=none", *[f"+attack@evaluation.attacks.{name}={name}" for name in names]]
        elif verb == "cost" and word.startswith(("model=", "defense=")) and "," in word:
            group, _, names_given = word.partition("=")
            words.append(f"{group}s=[{names_given.strip('[]')}]")
        elif verb == "train" and word.startswith("resume=") and word not in ("resume=auto", "resume=never"):
            words = [*overrides_of(Path(word[len("resume=") :])), *words]
        else:
            words.append(quoted_path(word))
    return words


def config_folder() -> Path:
    """Return where the options of all groups lie, in a checkout and in an installed package alike."""
    return Path(str(files(CONFIGS)))


def has_base(argv: Sequence[str]) -> bool:
    """Tell whether the chosen strategy stands over another one, whose attack it uses."""
    names = [word.partition("=")[2] for word in argv if word.startswith("strategy=")]
    path = config_folder() / "strategy" / f"{names[-1] if names else 'at'}.yaml"
    defaults = OmegaConf.select(OmegaConf.load(path), "defaults", default=[]) if path.is_file() else []
    return any("/strategy@base" in entry for entry in defaults if not isinstance(entry, str))


def quoted_path(word: str) -> str:
    """Quote `key=PATH` where PATH is there and Hydra would take its commas and brackets for a sweep or a list."""
    key, _, value = word.partition("=")
    plain = value.replace("/", "").replace(".", "").replace("_", "").replace("-", "").isalnum()
    if plain or not value or value[0] in "'\"[{" or not Path(value).exists():
        return word
    return f"{key}={quoted(value)}"


def quoted(text: str) -> str:
    """Return a text as a quoted string of Hydra's grammar."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def overrides_of(run: Path) -> list[str]:
    """Return what to tell Hydra to continue a run directory.

    Raises:
        ValueError: it is not one.
    """
    stored = run / OVERRIDES  # not Hydra's own, which a refused attempt in the same folder rewrites
    if not stored.is_file():
        raise ValueError(f"cannot resume {run}: not a run directory of fsr train (no {stored.name} in it)")
    # without what told that run not to resume: here it would clear the directory
    kept = [str(word) for word in OmegaConf.load(stored) if not str(word).lstrip("+").startswith("resume=")]
    return [*kept, "hydra.mode=RUN", f"hydra.run.dir={quoted(str(run))}"]  # unquoted, a comma would be a sweep


def key_of(override: str) -> str:
    """Return the path that an override of the command line is about."""
    return override.lstrip("+~").partition("=")[0]
