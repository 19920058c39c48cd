"""Runs under the switches that make training fast."""

import json

import pytest
import torch

from fsr_lab.core.record import EvaluationRecord

ARMED = ("strategy=at", "defense=fsr", "defense.module.width=4", "modifier=[awp,ema]")


def outcomes(fsr, run, *words):
    assert fsr("train", *words, f"hydra.run.dir={run}").code == 0
    return EvaluationRecord.load(next((run / "records").glob("last*.json")))


@pytest.mark.slow
def test_a_compiled_run_ends_with_the_networks_of_an_eager_one(fsr, tiny, tmp_path):
    eager = outcomes(fsr, tmp_path / "eager", *tiny, *ARMED)
    compiled = outcomes(fsr, tmp_path / "compiled", *tiny, *ARMED, "compile=aot_eager")
    # the same operations in the same order, but for what the tracer fuses
    assert abs(eager.margin - compiled.margin).max() < 1e-3
    assert (eager.outcome != compiled.outcome).mean() < 0.01


def test_a_run_may_be_continued_compiled_and_not_in_another_precision(fsr, tiny, tmp_path):
    run = tmp_path / "run"
    words = (*tiny, "strategy=at", f"hydra.run.dir={run}")
    assert fsr("train", *words, "trainer.max_epochs=1").code == 0
    assert "precision" in fsr("train", *words, "precision=bf16-mixed").refusal()
    assert fsr("train", *words, "compile=aot_eager").code == 0
    assert json.loads((run / "status.json").read_text())["max_epochs"] == 2


@pytest.mark.parametrize("preset", ["trainer=cpu_bf16", "trainer=cpu precision=bf16-mixed compile=aot_eager"])
def test_a_preset_trains_in_bfloat16_and_is_judged_in_float32(preset, fsr, tiny, tmp_path):
    words = [word for word in tiny if word != "trainer.accelerator=cpu"]
    record = outcomes(fsr, tmp_path / "run", *words, *ARMED[:3], *preset.split())
    assert record.precision == "float32"
    assert record.correct("clean").mean() > 0.5


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is one")
def test_an_accelerator_that_is_not_there_is_named(fsr, tiny, tmp_path):
    words = [word for word in tiny if word != "trainer.accelerator=cpu"]
    line = fsr("train", *words, "trainer=gpu").refusal()
    assert "finds none here; train with trainer=cpu" in line
