"""What is refused before a sweep is submitted; tests/integration has a Slurm for it."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fsr_lab.sweep import slurm

SINFO = """
debug*|1:00:00|(null)
debug*|1:00:00|gpu:2
large|infinite|gpu:a100:4(S:0-1),gpu:v100:4(S:0-1)
days|1-12:30:00|gpu:nvidia_h100_80gb_hbm3:8
short|30:00|(null)
"""


@pytest.fixture
def answer(tmp_path, monkeypatch):
    """Return the function that sets what the programs of a Slurm answer: (sinfo, sbatch), each a shell line."""

    def answering(sinfo=f"cat <<'END'{SINFO}END", sbatch="true"):
        for name, line in (("sinfo", sinfo), ("sbatch", f'echo "$@" >{tmp_path}/asked; {sbatch}')):
            path = tmp_path / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"#!/bin/sh\n{line}\n")
            path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")

    return answering


def sweep(**options):
    launcher = {
        "partition": None, "account": None, "qos": None, "constraint": None, "gpus_per_node": None, "cpus_per_task": 2,
        "mem_gb": 8, "timeout_min": 60, "nodes": 1, "tasks_per_node": 1, "additional_parameters": {"requeue": True},
    }  # fmt: skip
    return OmegaConf.create({"hydra": {"launcher": launcher | options}})


def test_slurm_is_asked_for_what_the_jobs_will_ask_for(answer, tmp_path):
    answer()
    slurm.check_slurm(sweep(partition="days,large", account="me", constraint="a|b", gpus_per_node=8, timeout_min=9999))
    asked = Path(tmp_path / "asked").read_text().split()
    assert {"--test-only", "--partition=days,large", "--account=me", "--constraint=a|b", "--mem=8GB"} <= set(asked)
    assert {"--gpus-per-node=8", "--cpus-per-task=2", "--time=9999", "--requeue", "--wrap=true"} <= set(asked)
    slurm.check_slurm(sweep(gpus_per_node=2))
    slurm.check_slurm(sweep(partition="days", timeout_min=2190))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"partition": "lrge"}, "no partition of this Slurm named 'lrge'; close names: .*'large'"),
        ({"partition": "debug,lrge"}, "named 'lrge'"),
        ({"gpus_per_node": 3}, "asks for 3 GPUs, and a node of partition debug has 2 at most; give launcher.gpus"),
        ({"partition": "large", "gpus_per_node": 9}, "asks for 9 GPUs, and a node of partition large has 8 at most"),
        ({"timeout_min": 61}, "asks for 61 minutes, and partition debug gives 60 at most; give launcher.minutes"),
        ({"partition": "short", "timeout_min": 31}, "partition short gives 30 at most"),
        ({"partition": "days", "timeout_min": 2191}, "partition days gives 2190 at most"),
    ],
)
def test_what_no_node_has_is_refused(answer, options, said):
    answer()
    with pytest.raises(ValueError, match=said):
        slurm.check_slurm(sweep(**options))


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"sinfo": "echo 'sinfo: error: no controller' >&2; exit 1"}, "Slurm does not answer: sinfo: error: no contr"),
        ({"sinfo": "echo 'large|infinite|(null)'"}, "no default partition; give launcher.partition, of \\['large'\\]"),
        (
            {"sbatch": "echo 'allocation failure: Invalid feature specification' >&2; exit 1"},
            r"would run no such job \(Invalid feature specification\); give other .*launcher.constraint",
        ),
    ],
)
def test_what_slurm_says_is_told(answer, answers, said):
    answer(**answers)
    with pytest.raises(ValueError, match=said):
        slurm.check_slurm(sweep())


def test_without_slurm_the_cure_is_a_login_node(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"needs sbatch, .* login node"):
        slurm.check_slurm(sweep())
