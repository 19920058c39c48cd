"""A blueprint as Python: what a model file of somebody else's zoo says."""

import json
from collections.abc import Iterator, Mapping
from textwrap import indent

from fsr_lab.export.blueprint import Blueprint, Part


def imports(blueprint: Blueprint) -> str:
    """Return the import lines that `body` needs, sorted."""
    parts = {part.target for part in (blueprint.backbone, *blueprint.defenses.values())}
    parts.add("fsr_lab.model.defended.attach")
    if blueprint.normalize:
        parts.add("fsr_lab.model.normalize.Normalize")
    lines = [f"from {target.rpartition('.')[0]} import {target.rpartition('.')[2]}" for target in sorted(parts)]
    return "\n".join([*(["from functools import partial\n"] if blueprint.defenses else []), *lines])


def body(blueprint: Blueprint) -> str:
    """Return the body of a function of `num_classes` that returns the network with fresh weights, indented."""
    lines = [f"backbone = {_called(blueprint.backbone)}"]
    if blueprint.normalize:
        lines.append(f"Normalize({_arguments(blueprint.normalize)}).put_on(backbone)")
    lines += ["defenses = {", *_defenses(blueprint), "}"]
    sizes = f"{blueprint.image_shape!r}, num_classes, {_literal(blueprint.layout)}"
    lines.append(f"return attach(backbone, defenses, {sizes}).eval()")
    return indent("\n".join(lines), "    ")


def _defenses(blueprint: Blueprint) -> Iterator[str]:
    for point, part in blueprint.defenses.items():
        yield f"    {_literal(point)}: partial("
        yield f"        {part.target.rpartition('.')[2]},"
        yield from (f"        {key}={_literal(value)}," for key, value in part.arguments.items())
        yield "    ),"


def _called(part: Part) -> str:
    given = {key: value for key, value in part.arguments.items() if key != "num_classes"}
    num_classes = "num_classes=num_classes, " if "num_classes" in part.arguments else ""
    return f"{part.target.rpartition('.')[2]}({num_classes}{_arguments(given)})"


def _arguments(given: Mapping[str, object]) -> str:
    return ", ".join(f"{key}={_literal(value)}" for key, value in given.items())


def _literal(value: object) -> str:
    return json.dumps(value) if isinstance(value, str) else repr(value)
