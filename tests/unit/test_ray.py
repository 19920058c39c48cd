"""Which job a Ray cluster could never run; tests/integration has a cluster for the rest."""

import pytest

from fsr_lab.sweep.ray_cluster import check_room


def test_a_job_must_fit_one_node():
    nodes = [{"Alive": True, "Resources": {"CPU": 4.0}}, {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}]
    check_room({"num_cpus": 4, "num_gpus": 0, "resources": {}}, nodes)
    with pytest.raises(ValueError, match=r"8 CPU, and no node of this Ray cluster has that \(at most 4 CPU\)"):
        check_room({"num_cpus": 8}, nodes)
    with pytest.raises(ValueError, match="1 a100"):
        check_room({"num_cpus": 1, "resources": {"a100": 1}}, nodes)
