import getpass
import json
import platform
import re
import socket
import subprocess
from pathlib import Path

import pytest

from fsr_lab import __version__
from fsr_lab.core.provenance import Provenance


def collected(**changes):
    return Provenance.collect(**({"command": "fsr train seed=3", "seed": 3, "hashes": {"data": "abc"}} | changes))


def test_it_says_what_ran_where():
    found = collected()
    assert (found.command, found.seed, found.hashes) == ("fsr train seed=3", 3, {"data": "abc"})
    assert found.versions["python"] == platform.python_version()
    assert found.versions["fsr-lab"] == __version__
    assert found.versions["torch"].startswith("2.")
    assert set(found.host) == {"processor", "cores", "threads", "accelerator"}
    assert all(isinstance(value, str) and value for value in found.host.values())


def test_it_survives_json():
    found = collected()
    assert Provenance(**json.loads(json.dumps(found.as_dict()))) == found


def test_it_gives_nobody_away():
    text = json.dumps(collected().as_dict())
    places = [Path(__file__).parents[2], Path.home(), Path.cwd()]
    assert not [str(place) for place in places if len(str(place)) > 1 and str(place) in text]
    words = set(re.findall(r"[\w.-]+", text))
    assert socket.gethostname() not in words
    assert getpass.getuser() not in words


def in_a_repository(tmp_path, monkeypatch, *, tracked):
    """Make the module believe that it lies in a repository of its own; return its git."""

    def git(*arguments):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", *identity, "-C", str(tmp_path), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    file = tmp_path / "provenance.py"
    file.write_text("one")
    git("init", "-q")
    (tmp_path / "other.txt").write_text("one")
    git("add", "provenance.py" if tracked else "other.txt")
    git("commit", "-q", "-m", "first")
    monkeypatch.setattr("fsr_lab.core.provenance.__file__", str(file))
    return git


def test_the_revision_is_the_trees_own(tmp_path, monkeypatch):
    git = in_a_repository(tmp_path, monkeypatch, tracked=True)
    found = collected()
    assert (found.revision, found.dirty) == (git("rev-parse", "HEAD"), False)
    (tmp_path / "untracked.txt").write_text("no matter")
    assert not collected().dirty
    (tmp_path / "provenance.py").write_text("two")
    assert collected().dirty


def test_a_package_installed_within_a_foreign_repository_has_no_revision(tmp_path, monkeypatch):
    in_a_repository(tmp_path, monkeypatch, tracked=False)
    found = collected()
    assert (found.revision, found.dirty) == ("", False)


@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.CalledProcessError(128, "git")])
def test_without_git_there_is_no_revision(error, monkeypatch):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    found = collected()
    assert (found.revision, found.dirty) == ("", False)


def test_a_package_that_is_missing_is_called_absent(monkeypatch):
    monkeypatch.setattr("fsr_lab.core.provenance.PACKAGES", ("torch", "no-such-package-of-ours"))
    assert collected().versions["no-such-package-of-ours"] == "absent"
