import errno
import hashlib
import http.server
import re
import threading
from pathlib import Path

import pytest

from fsr_lab.dataset import download as download_module
from fsr_lab.dataset.download import download

DATA = bytes(range(256)) * 4096  # 1 MiB
MD5 = hashlib.md5(DATA, usedforsecurity=False).hexdigest()
CURE = "give a local file"


class Source(http.server.BaseHTTPRequestHandler):
    """Serves /whole, /broken (stops half way), /wrong (other bytes), /old (knows no ranges), and three that stall.

    /slow trickles, /silent sends 30 kB and then nothing, /lazy trickles for half a second and then sends the rest.
    """

    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.asked.append((self.path, asked))
        if self.path not in ("/whole", "/broken", "/wrong", "/old", "/slow", "/silent", "/lazy"):
            return self.send_error(404)
        data = DATA[::-1] if self.path == "/wrong" else DATA
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.path != "/old" else 0
        if start >= len(data):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.path == "/lazy":  # slow at first, and then not
            for _ in range(5):
                self.wfile.write(data[start : start + 1000])
                self.server.enough.wait(timeout=0.12)
                start += 1000
        if self.path in ("/slow", "/silent"):
            for place in range(start, start + (30_000 if self.path == "/silent" else 1_000_000), 1000):
                self.wfile.write(data[place : place + 1000])
                if self.path == "/slow" and self.server.enough.wait(timeout=0.02):
                    return None
            return self.server.enough.wait(timeout=10)
        stop = (start + len(data)) // 2 if self.path == "/broken" else len(data)
        return self.wfile.write(data[start:stop])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Source) as running:
        running.asked = []
        running.url = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.enough = threading.Event()
        yield running
        running.enough.set()
        running.shutdown()
        thread.join(timeout=5)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "new" / "archive.tar.gz"


def fetch(server, target, *paths, md5=MD5, **pace):
    return download([server.url + path for path in paths], target, md5=md5, offline=CURE, **pace)


def left(target):
    return sorted(path.name for path in target.parent.iterdir())


def test_a_file_is_fetched_whole_with_plain_lines_of_progress(server, target, capsys):
    assert fetch(server, target, "/whole") == server.url + "/whole"
    assert target.read_bytes() == DATA
    assert left(target) == ["archive.tar.gz"]
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "archive.tar.gz: 1.0 of 1.0 MB"
    assert 1 < len(lines) <= 10


def test_when_the_first_source_is_dead_the_second_serves(server, target):
    dead = "http://127.0.0.1:9"  # the discard port: nothing listens
    used = download([dead, server.url + "/gone", server.url + "/whole"], target, md5=MD5, offline=CURE)
    assert used == server.url + "/whole"
    assert target.read_bytes() == DATA


def test_a_transfer_that_broke_is_resumed_where_it_stopped(server, target):
    with pytest.raises(OSError, match=f"broke off after {len(DATA) // 2} of {len(DATA)} bytes"):
        fetch(server, target, "/broken")
    assert left(target) == ["archive.tar.gz.part"]
    fetch(server, target, "/whole")
    assert server.asked == [("/broken", None), ("/whole", f"bytes={len(DATA) // 2}-")]
    assert target.read_bytes() == DATA
    assert left(target) == ["archive.tar.gz"]


def test_the_next_source_continues_what_the_one_before_began(server, target):
    assert fetch(server, target, "/broken", "/whole") == server.url + "/whole"
    assert server.asked[1] == ("/whole", f"bytes={len(DATA) // 2}-")
    assert target.read_bytes() == DATA


def test_a_source_that_knows_no_ranges_starts_anew(server, target):
    assert fetch(server, target, "/broken", "/old") == server.url + "/old"
    assert target.read_bytes() == DATA


IMPATIENT = {"min_rate": 1e6, "window_seconds": 0.3}
"""A host that trickles 1 kB in 20 ms gives 50 kB/s."""


def test_a_slow_host_is_left_and_the_next_continues_where_it_stopped(server, target, caplog):
    assert fetch(server, target, "/slow", "/whole", **IMPATIENT) == server.url + "/whole"
    assert re.search(r"/slow: too slow: \d+ kB/s where 1000 kB/s are expected", caplog.text)
    (_, first), (path, second) = server.asked
    start = int(second.removeprefix("bytes=").removesuffix("-"))
    assert (first, path, start % 1000, 0 < start < len(DATA)) == (None, "/whole", 0, True)
    assert target.read_bytes() == DATA
    assert left(target) == ["archive.tar.gz"]


def test_a_silent_host_is_left(server, target, caplog):
    assert fetch(server, target, "/silent", "/whole", **IMPATIENT) == server.url + "/whole"
    assert "/silent: timed out" in caplog.text
    assert server.asked[1] == ("/whole", "bytes=30000-")
    assert target.read_bytes() == DATA


def test_a_wrong_mirror_after_a_slow_host_does_not_spoil_the_file(server, target):
    used = fetch(server, target, "/slow", "/gone", "/wrong", "/whole", **IMPATIENT)
    assert used == server.url + "/whole"
    assert target.read_bytes() == DATA


def test_where_all_others_have_failed_the_slow_host_may_be_slow(server, target):
    assert fetch(server, target, "/lazy", "/gone", **IMPATIENT) == server.url + "/lazy"
    assert [path for path, _ in server.asked] == ["/lazy", "/gone", "/lazy"]
    assert server.asked[2][1] is not None
    assert target.read_bytes() == DATA


def test_a_file_that_is_there_is_not_fetched(server, target):
    target.parent.mkdir()
    target.write_bytes(DATA)
    assert download_module.fetch(target.parent, target.name, [server.url + "/whole"], md5=MD5, offline=CURE) == (
        target, str(target),
    )  # fmt: skip
    target.unlink()
    found = download_module.fetch(target.parent, target.name, [server.url + "/whole"], md5=MD5, offline=CURE)
    assert found == (target, server.url + "/whole")
    assert len(server.asked) == 1


def test_a_wrong_checksum_is_refused_and_leaves_nothing(server, target):
    with pytest.raises(OSError, match=f"expected md5 {MD5}, got") as caught:
        fetch(server, target, "/wrong")
    assert "\n" not in str(caught.value)
    assert left(target) == []


@pytest.mark.parametrize("stale", [b"something else", DATA + b"and more", DATA[::-1]])
def test_a_part_of_another_file_is_thrown_away_and_fetched_anew(stale, server, target):
    target.parent.mkdir()
    target.with_name("archive.tar.gz.part").write_bytes(stale)
    fetch(server, target, "/whole")
    assert target.read_bytes() == DATA


def test_a_part_that_was_whole_already_needs_only_its_name(server, target):
    target.parent.mkdir()
    target.with_name("archive.tar.gz.part").write_bytes(DATA)
    fetch(server, target, "/whole")
    assert target.read_bytes() == DATA
    assert len(server.asked) == 1


def test_when_all_sources_fail_each_is_named_with_its_reason(server, target):
    with pytest.raises(OSError, match=r"no source gave archive.tar.gz") as caught:
        fetch(server, target, "/gone", "/wrong")
    message = str(caught.value)
    for part in (f"{server.url}/gone: HTTP Error 404", f"{server.url}/wrong: expected md5", CURE):
        assert part in message
    assert "\n" not in message


def test_a_full_disk_ends_at_once_and_leaves_nothing(server, target, monkeypatch):
    opened = Path.open

    def full(path, *args, **kwargs):
        stream = opened(path, *args, **kwargs)
        if path.suffix != ".part":
            return stream

        class FullDisk:
            def __enter__(self):
                return self

            def __exit__(self, *error):
                stream.close()

            def write(self, data):
                raise OSError(errno.ENOSPC, "No space left on device")

        return FullDisk()

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match=r"no space left on the disk of .*: free some and run again") as caught:
        fetch(server, target, "/whole", "/old")
    assert caught.value.errno == errno.ENOSPC
    assert len(server.asked) == 1
    assert left(target) == []
