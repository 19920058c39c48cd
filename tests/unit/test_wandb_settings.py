"""Where W&B's data go, and what it is told of a run, without W&B."""

import pytest

from fsr_lab.engine.wandb_settings import RUN_ID, completed, has_key, run_id

ABOUT = {"label": "at+fsr", "dataset": {"name": "toy"}}


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_SWEEP_ID", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def made(run, about=ABOUT, **node):
    return completed(node, about=about, run=run, job="train", patience=3)


def test_without_a_key_it_stays_offline_and_with_one_goes_online(tmp_path, monkeypatch):
    assert made(tmp_path)["mode"] == made(tmp_path, offline="auto")["mode"] == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert made(tmp_path)["mode"] == "online"
    assert made(tmp_path, offline=True)["mode"] == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert made(tmp_path)["mode"] == "disabled"
    assert made(tmp_path, offline=False)["mode"] == "online"
    with pytest.raises(ValueError, match="true, false or auto, got 'yes'"):
        made(tmp_path, offline="yes")


def test_a_key_in_a_netrc_file_is_that_of_its_host(tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine example.org login user password secret\n")
    assert not has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://example.org")
    assert has_key()
    (tmp_path / "netrc").write_text("not a netrc file")
    assert not has_key()


def test_a_run_directory_keeps_its_id_but_not_the_agents(tmp_path, monkeypatch):
    first = run_id(tmp_path / "one")
    assert first == run_id(tmp_path / "one") == made(tmp_path / "one")["id"]
    assert first != run_id(tmp_path / "two")
    assert made(tmp_path / "one", id="mine")["id"] == "mine"
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    monkeypatch.setenv("WANDB_RUN_ID", "r")
    assert run_id(tmp_path / "three") is None
    assert not (tmp_path / "three" / RUN_ID).exists()


def test_what_the_user_says_wins_and_tags_stay_short_and_single(tmp_path):
    node = made(tmp_path, tags=["mine", "toy"], job_type="own", settings={"silent": False}, entity="team", name="n")
    assert node["tags"] == ["mine", "toy", "at", "fsr"]
    assert (node["job_type"], node["entity"], node["name"]) == ("own", "team", "n")
    assert node["settings"]["silent"] is False
    assert (node["settings"]["reinit"], node["settings"]["finish_timeout"]) == ("create_new", 3)
    assert [len(tag) for tag in made(tmp_path, {"label": "a" * 100, "dataset": {"name": "b"}})["tags"]] == [1, 64]
    assert made(tmp_path, {"label": None, "dataset": {"name": "b"}}, name="None-seed0")["name"] is None
