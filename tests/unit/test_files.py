import errno
import os
import threading

import pytest

from fsr_lab.core.files import write_atomically, write_text


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "new" / "folder" / "notes.txt"
    write_text(path, "eins, zwei: ε ≤ 8/255\n")
    assert path.read_bytes() == "eins, zwei: ε ≤ 8/255\n".encode()
    write_text(path, "drei")
    assert path.read_text() == "drei"
    assert [entry.name for entry in path.parent.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ArithmeticError("boom"), OSError(errno.EIO, "broken disk")])
def test_half_a_file_is_never_seen(error, tmp_path):
    path = tmp_path / "notes.txt"
    write_text(path, "whole")

    def interrupted(stream):
        stream.write(b"half")
        stream.flush()
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, interrupted)
    assert path.read_text() == "whole"
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


def refuse(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("when", ["writing", "syncing"])
def test_a_full_disk_says_so_and_keeps_what_stood_there(tmp_path, monkeypatch, when):
    path = tmp_path / "notes.txt"
    write_text(path, "whole")
    if when == "syncing":
        monkeypatch.setattr(os, "fsync", refuse)
    write = refuse if when == "writing" else lambda stream: stream.write(b"half")
    with pytest.raises(OSError, match=f"no space left on the disk of {tmp_path}: free some and run again") as caught:
        write_atomically(path, write)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "whole"
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


def test_the_new_file_is_invisible_until_it_is_whole(tmp_path):
    path = tmp_path / "notes.txt"
    seen = []

    def slowly(stream):
        stream.write(b"first half, ")
        stream.flush()
        seen.append(path.exists())
        stream.write(b"second half")

    write_atomically(path, slowly)
    assert seen == [False]
    assert path.read_text() == "first half, second half"


def test_two_threads_do_not_write_into_each_other(tmp_path):
    path = tmp_path / "notes.txt"
    both_open = threading.Barrier(2)

    def work(letter):
        def write(stream):
            both_open.wait(timeout=5)
            stream.write(letter * 10_000)

        write_atomically(path, write)

    threads = [threading.Thread(target=work, args=(letter,)) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in (b"a" * 10_000, b"b" * 10_000)
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]
