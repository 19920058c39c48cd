"""`fsr cost` from the command line to its table, and the committed Table 7."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from fsr_lab.core.cost import CostRecord

ROOT = Path(__file__).parents[2]
TABLE7 = ROOT / "experiments" / "table7"
MODELS, DEFENSES = (
    sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml")) for group in ("model", "defense")
)


@pytest.fixture
def cost(fsr):
    """Return `fsr cost` beside the repository's experiments."""
    return lambda *argv: fsr("cost", *argv, f"paths.experiments={ROOT / 'experiments'}")


def folder(tmp_path):
    """Return the folder of the only run there was."""
    (found,) = tmp_path.glob("runs/cost/*")
    return found


def table(run):
    with (run / "table.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_one_row(cost, tmp_path):
    outcome = cost("model=resnet18", "defense=fsr")
    assert outcome.code == 0, outcome.err
    for text in ("12,432,980", "1,259,018", "1.1535", "12.43", "2 of the 2 figures compared with Table 7"):
        assert text in outcome.out
    run = folder(tmp_path)
    assert outcome.out.endswith(f"report: {run / 'report.md'}\n")
    assert {path.name for path in run.iterdir()} == {"costs.json", "expected.json", "report.md", "table.csv"}
    (row,) = CostRecord.load(run / "costs.json").rows
    assert (row.model, row.defense, row.settings, row.image_shape, row.num_classes) == (
        "resnet18", "fsr", (), (3, 32, 32), 10,
    )  # fmt: skip
    assert row.cost == (12_432_980, 1_259_018, 1_153_466_448, 575_476_736, 575_492_096)
    (line,) = table(run)
    assert (line["parameters"], line["difference_parameters"], line["difference_flops"]) == (
        "12432980",
        "0.00",
        "0.0000",
    )


def test_two_rows_at_another_size(cost, tmp_path):
    outcome = cost("model=resnet18", "defense=none,fsr", "dataset.image_shape=[3,64,64]", "dataset.num_classes=200")
    assert outcome.code == 0, outcome.err
    lines = table(folder(tmp_path))
    assert [line["defense"] for line in lines] == ["none", "fsr"]
    assert [f"{int(line['macs_with_aux']) / 1e9:.4f}" for line in lines] == ["2.2218", "2.3023"]
    assert [line["parameters"] for line in lines] == ["11271432", str(11_271_432 + 1_356_488)]
    assert "compared" not in outcome.out
    assert {line["image_shape"] for line in lines} == {"3x64x64"}


def test_settings_are_named_and_not_compared(cost, tmp_path):
    outcome = cost("model=resnet18", "defense=fsr", "model.width=16", "defense.at=[layer3,layer4]")
    assert outcome.code == 0, outcome.err
    assert "compared" not in outcome.out
    (line,) = table(folder(tmp_path))
    assert line["settings"] == "model.width=16 defense.at=[layer3,layer4]"
    # both bottlenecks 64 wide as ever, at 64 and 128 channels of the narrow network
    assert int(line["defense_parameters"]) == sum(
        2 * (2 * 9 * channels * 64 + 9 * 64 * 64 + 4 * 64) + 10 * channels + 10 for channels in (64, 128)
    )


def test_a_combination_that_cannot_be_built_gives_its_reason_in_its_row(cost, tmp_path):
    outcome = cost("models=[resnet18,tiny_cnn,resnet19]", "defense=fsr", "defense.at=layer4")
    assert outcome.code == 0, outcome.err
    good, unfit, unknown = table(folder(tmp_path))
    assert (good["model"], good["reason"], good["parameters"]) == ("resnet18", "", "12432980")
    assert (unfit["model"], unfit["parameters"]) == ("tiny_cnn", "")
    assert unfit["reason"].startswith("no layer named 'layer4' in TinyCNN")
    assert unknown["reason"].startswith("no model named 'resnet19'; close names: ['resnet18'")
    assert "no layer named" in outcome.out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("model=resnet19", "defense=fsr"), "no model named 'resnet19'; close names: ['resnet18'"),
        (("model=resnet18", "defense=fsr", "defense.at=layr4"), "no layer named 'layr4' in ResNet; close names:"),
        (("model=resnet18", "defense=fsr", "defense.module.tau=0"), "expected tau above 0, got 0"),
        (("model=resnet18", "defense=none", "model.num_classes=7"), "to map 2 images to logits (2, 10), got (2, 7)"),
        (("model=resnet18", "defense=none", "model.functional=[Relu]"), "no module class named 'Relu'; close names:"),
        (("model=resnet18", "defenses=[]"), "no backbone under a defence to count; name one, as model=resnet18"),
    ],
)
def test_where_nothing_can_be_counted_it_is_an_error_of_one_line(cost, argv, said):
    assert said in cost(*argv).refusal()


def test_every_defence_on_the_smallest_network(cost, tmp_path):
    outcome = cost("model=tiny_cnn")
    assert outcome.code == 0, outcome.err
    lines = table(folder(tmp_path))
    assert [line["defense"] for line in lines] == ["none", *[name for name in DEFENSES if name != "none"]]
    assert [line["reason"] for line in lines if line["reason"]] == []
    bare = int(lines[0]["parameters"])
    assert all(int(line["parameters"]) == bare + int(line["defense_parameters"]) for line in lines)


@pytest.mark.slow
def test_every_network_bare_and_with_fsr(cost, tmp_path):
    outcome = cost("defense=none,fsr")
    assert outcome.code == 0, outcome.err
    lines = table(folder(tmp_path))
    assert [(line["model"].partition(":")[0], line["defense"]) for line in lines] == [
        (model, defense) for model in MODELS for defense in ("none", "fsr")
    ]
    counted = {(line["model"], line["defense"]) for line in lines if not line["reason"]}
    assert counted >= {("resnet18", "none"), ("resnet18", "fsr"), ("tiny_cnn", "none"), ("tiny_cnn", "fsr")}


# METHOD §1.8, §1.9 and §2: parameters of network and of FSR in it, and GMACs without and with FSR, of each size
GOLDEN = {
    "resnet18": ((11_173_962, 1_259_018), ("0.5554", "0.5755"), ("2.2218", "2.3023")),
    "vgg16": ((15_253_578, 1_259_018), ("0.3137", "0.3338"), ("1.2534", "1.3339")),
    "wrn34_10": ((46_160_474, 1_555_210), ("6.6589", "6.7580"), ("26.6357", "27.0325")),
}


@pytest.mark.parametrize(
    "model",
    [pytest.param(name, marks=[pytest.mark.slow] if name == "wrn34_10" else []) for name in GOLDEN if name in MODELS],
)
def test_networks_of_the_paper_at_both_sizes(cost, tmp_path, model):
    parameters, *sizes = GOLDEN[model]
    for (side, classes), wanted in zip(((32, 10), (64, 200)), sizes, strict=True):
        run = tmp_path / str(side)
        shape = (f"dataset.image_shape=[3,{side},{side}]", f"dataset.num_classes={classes}")
        outcome = cost(f"model={model}", "defense=none,fsr", *shape, f"hydra.run.dir={run}")
        assert outcome.code == 0, outcome.err
        bare, with_fsr = table(run)
        if classes == 10:
            assert int(bare["parameters"]) == parameters[0]
            assert int(with_fsr["defense_parameters"]) == parameters[1]
        found = [f"{int(line['macs_with_aux']) / 1e9:.4f}" for line in (bare, with_fsr)]
        assert found == list(wanted)


@pytest.mark.slow
def test_the_whole_table(cost, tmp_path):
    outcome = cost()
    assert outcome.code == 0, outcome.err
    lines = table(folder(tmp_path))
    assert len(lines) == len(MODELS) * len(DEFENSES)
    for line in lines:
        assert bool(line["reason"]) != bool(line["parameters"])
        assert "\n" not in line["reason"]


def test_without_the_papers_figures_it_says_so(fsr, tmp_path):
    outcome = fsr("cost", "model=tiny_cnn", "defense=none")
    assert outcome.code == 0
    assert "not compared with the paper: expected=experiments/table7/expected.json is not a file here" in outcome.err
    assert not (folder(tmp_path) / "expected.json").exists()


def test_a_deviation_from_the_paper_is_printed(cost, tmp_path):
    content = json.loads((TABLE7 / "expected.json").read_text())
    content["rows"]["resnet18"]["flops"] = "1.1134"
    (tmp_path / "other.json").write_text(json.dumps(content))
    outcome = cost("model=resnet18", "defense=none", f"expected={tmp_path / 'other.json'}")
    assert "1 of the 2 figures compared" in outcome.out
    assert "1.1133 here, 1.1134 there, -0.0001. The reason is not known." in " ".join(outcome.out.split())


def test_report_makes_the_same_page_again(cost, fsr, tmp_path):
    cost("model=tiny_cnn", "defense=none")
    run = folder(tmp_path)
    before = {name: (run / name).read_bytes() for name in ("report.md", "table.csv")}
    for name in before:
        (run / name).unlink()
    outcome = fsr("report", run)
    assert outcome.code == 0, outcome.err
    assert {name: (run / name).read_bytes() for name in before} == before


def test_a_sweep_ends_with_one_table(cost, tmp_path):
    outcome = cost("-m", "model=tiny_cnn", "defense=none", "dataset=cifar10,toy")
    assert outcome.code == 0, outcome.err
    lines = table(folder(tmp_path))
    assert {(line["image_shape"], line["num_classes"]) for line in lines} == {("3x32x32", "10"), ("3x8x8", "4")}
    assert outcome.out.count("report: ") == 1


def test_records_of_evaluations_come_before_costs(fsr, trained, tmp_path):
    shutil.copytree(trained.run / "records", tmp_path / "both" / "records")
    shutil.copy(TABLE7 / "costs.json", tmp_path / "both")
    assert fsr("report", tmp_path / "both").code == 0
    assert "Robust accuracy" in (tmp_path / "both" / "report.md").read_text()


def test_its_help_and_its_line_in_the_list_of_verbs(fsr):
    (line,) = [line for line in fsr().out.splitlines() if line.startswith("  fsr cost ")]
    assert "FLOPs" in line
    outcome = fsr("cost", "--help")
    assert outcome.code == 0
    assert outcome.out.startswith("fsr cost: ")
    assert "fsr cost model=vgg16 defense=fsr" in outcome.out
    assert "defense: " in outcome.out


def test_progress_names_the_end(cost):
    assert "cost: 1/1" in cost("model=tiny_cnn", "defense=none").err


def test_the_committed_table_7_is_what_its_record_says(fsr, tmp_path):
    shutil.copytree(TABLE7, tmp_path / "table7")
    assert fsr("report", "table7").code == 0
    for name in ("report.md", "table.csv"):
        assert (tmp_path / "table7" / name).read_text() == (TABLE7 / name).read_text()


def test_the_committed_table_7_is_counted_again(cost, tmp_path):
    committed = CostRecord.load(TABLE7 / "costs.json").rows
    models = sorted({row.model for row in committed})
    outcome = cost("experiment=table7", f"models=[{','.join(models)}]", f"hydra.run.dir={tmp_path / 'again'}")
    assert outcome.code == 0, outcome.err
    assert set(CostRecord.load(tmp_path / "again" / "costs.json").rows) == set(committed)
