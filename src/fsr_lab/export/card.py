"""The model card: what a network is, against what it holds, how it was trained, and whether its numbers are real."""

from collections.abc import Iterator, Mapping
from importlib.metadata import version

from fsr_lab.export.network import Network
from fsr_lab.report.table import accuracy_table
from fsr_lab.report.verdict import verdict

LOADED = {
    "safetensors": 'model = fsr_lab.load("{place}"{pin})',
    "robustbench": 'model = fsr_lab.load("{place}"{pin})  # or by RobustBench, see submission.md',
    "torch_hub": 'model = torch.hub.load("{place}", "{name}", source="local")  # or fsr_lab.load("{place}"{pin})',
    "timm": 'import {name}  # the module beside this card\nmodel = timm.create_model("{name}", pretrained=True)',
    "torch_export": 'model = fsr_lab.load("{place}"{pin})  # or torch.export.load("model.pt2").module()',
    "onnx": 'model = fsr_lab.load("{place}"{pin})  # or onnxruntime; images: float32 (N, C, H, W) in [0, 1]',
}
"""{format: how to load it}."""
UNEVALUATED = (
    "No evaluation of these weights was found: nothing is known of their robustness. "
    "`fsr evaluate run=DIR evaluation=[paper,autoattack,adaptive]` makes one; then export again with "
    "`records=FOLDER`.\n"
)
LIMITS = (
    "Robust accuracy is an upper bound: it is what the attacks named above leave, within the threat model above and on "
    "images like the test images. It says nothing of other norms, larger perturbations, other data or other ways of "
    "changing an image. Not for use where safety rests on it.\n"
)


def write(network: Network, format: str) -> str:
    """Return the card as Markdown, with the front matter that the Hugging Face hub reads."""
    lines = [
        "---", f"license: {network.licence.lower()}", "library_name: fsr-lab", "pipeline_tag: image-classification",
        "tags: [adversarial-robustness, adversarial-training, image-classification]", f"datasets: [{network.dataset}]",
        "---", "",
        f"# {network.name}\n",
        f"{network.headline}: images (N, {', '.join(map(str, network.blueprint.image_shape))}) in [0, 1] to logits "
        f"(N, {network.blueprint.num_classes}).\n",
        "```python", LOADED[format].format(place="PATH", name=network.name, pin=', sha256="..."'), "```\n",
        "The hash that `fsr export` printed is that of `config.json`, which holds those of all other files.\n",
        "## Threat model\n",
        f"Perturbations of at most {network.threat} per image, images staying in [0, 1]; the attacker knows the whole "
        "network.\n",
        "## Results\n", *_results(network),
        "## Recipe\n", *_rows(network.recipe),
        "## Data\n", *_rows(network.data),
        "## Provenance\n", *_rows(dict(network.provenance) | {"exported by": f"fsr-lab {version('fsr-lab')}"}),
        "## Limits\n", LIMITS,
        "## Licence\n", f"{network.licence}\n",
    ]  # fmt: skip
    return "\n".join(lines)


def _results(network: Network) -> Iterator[str]:
    if not network.records:
        yield UNEVALUATED
        return
    yield accuracy_table(network.records).markdown()
    for record in network.records:
        yield f"**{record.name}, the doctor's verdict: {verdict(record).sentence}.**\n"
        yield from (
            f"- {finding.verdict} {finding.check}: {finding.text}"
            for finding in record.findings
            if finding.verdict in ("warn", "fail")
        )
        yield ""


def _rows(facts: Mapping[str, str]) -> Iterator[str]:
    yield "| what | how |\n|---|---|"
    yield from (f"| {what} | {how} |" for what, how in facts.items() if how)
    yield ""
