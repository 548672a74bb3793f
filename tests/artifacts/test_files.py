"""Files are whole or as before, a lock has one holder, and a line that was cut costs no other."""

import errno
import fcntl
import logging
import math
import os
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.artifacts.test_paths import ODD_NAMES
from vggdist.artifacts.files import (
    JsonLines,
    LockedError,
    is_locked,
    lock,
    pack_names,
    replacing,
    unpack_names,
    write_arrays,
    write_text,
)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_temporary_file_has_a_name_beside_every_file(name: str, tmp_path: Path) -> None:
    with replacing(tmp_path / name, ".safetensors") as temporary:
        temporary.write_bytes(b"whole")
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".safetensors"
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == b"whole"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_file_whose_writing_fails_is_as_before(error: BaseException, tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")

    def fail() -> None:
        with replacing(tmp_path / "file") as temporary:
            temporary.write_text("ne")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_has_the_mode_of_the_umask_whoever_writes_it(tmp_path: Path, durable: bool) -> None:
    umask = os.umask(0o027)
    try:
        with replacing(tmp_path / "new" / "file", durable=durable) as temporary:
            temporary.unlink()
            temporary.touch(mode=0o600)
    finally:
        os.umask(umask)
    assert (tmp_path / "new" / "file").stat().st_mode & 0o777 == 0o640


def test_arrays_are_on_the_disk_before_they_have_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (events.append("fsync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *names: (events.append("rename"), rename(*names)))
    write_arrays(tmp_path / "file.npz", {"x": np.arange(3)})
    assert events == ["fsync", "rename"]
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        write_arrays(tmp_path / "file.npz", {"x": np.array([None])})
    with np.load(tmp_path / "file.npz") as stored:
        assert stored["x"].tolist() == [0, 1, 2]
    assert os.listdir(tmp_path) == ["file.npz"]


def test_a_lock_names_its_holder_and_ends_with_it(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    path = tmp_path / "lock"
    with pytest.raises(LockedError, match=f"^process {holder.pid} on {os.uname().nodename}$"):
        lock(path)
    assert is_locked(path)
    holder.kill()
    holder.wait()
    assert not is_locked(path)
    with lock(path):
        assert is_locked(path)


@pytest.mark.parametrize("patience_seconds", [60.0, math.inf])
def test_a_patient_process_gets_a_lock_that_becomes_free(
    tmp_path: Path, holder: subprocess.Popen[str], patience_seconds: float
) -> None:
    timer = threading.Timer(0.3, holder.kill)
    timer.start()
    with lock(tmp_path / "lock", patience_seconds):
        assert is_locked(tmp_path / "lock")
    timer.join()


def test_without_locks_there_is_a_warning_or_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def not_there(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(logging.getLogger("vggdist"), "propagate", True)
    monkeypatch.setattr(fcntl, "flock", not_there)
    with pytest.raises(OSError, match="not implemented"):
        lock(tmp_path / "lock", math.inf)
    lock(tmp_path / "lock", without_locks="start it only once").close()
    assert caplog.messages == [
        f"{tmp_path} cannot be locked (Function not implemented); start it only once."
    ]
    assert not is_locked(tmp_path / "lock")


def test_a_line_that_was_cut_short_costs_itself_alone(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "lines.jsonl")
    assert lines.read() == []
    lines.append({"step": 1})
    with lines.path.open("a") as file:
        file.write('{"step": 2')
    assert lines.read() == [{"step": 1}]
    lines.append({"step": 3, "name": "é\u2028\udcff"}, durable=True)
    assert lines.read() == [{"step": 1}, {"step": 3, "name": "é\u2028\udcff"}]


def test_what_is_kept_stays_as_it_was_written(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "lines.jsonl")
    rows = ['{"step":1,  "x": 1e0}', "12", "null", "\0", '{"step": "a"}', '{"x": 1}', '{"step": 9}']
    lines.path.write_text("\n".join(rows))
    assert lines.keep(lambda record: record["step"] <= 8) == [{"step": 1, "x": 1.0}]
    assert lines.path.read_text() == rows[0] + "\n"


@pytest.mark.parametrize("names", [[], ["a"], ["a/b c", "é", "\udcff"], ["", "a"], ["a", ""]])
def test_packed_names_come_back(names: list[str]) -> None:
    packed = pack_names(names)
    assert packed.dtype == np.uint8
    assert unpack_names(packed) == tuple(names)
    if names and names[-1]:  # as manifests have them
        assert unpack_names(packed[:-1]) == tuple(names)
