"""A process in which CUDA is pretended, and forks of it in which functions of tests run.

torch must be told of the pretended driver before it is loaded, so no test can do it in its own
process. The one here loads torch and DeepSpeed once; a fork costs next to nothing, and what a
function changes ends with it.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")
LONGEST_SECONDS = 200
"""After which a function is ended, less than pytest's own limit for a test."""
SOURCE = Path(__file__).with_name("devices.cpp")


def compile_devices(folder: Path) -> Path:
    """The library of `devices.cpp`; its name is the one by which torch asks for the driver."""
    library, others = folder / "libcuda.so.1", folder / "others.cpp"
    # torch loads its door to the driver only if all functions are there; the others do nothing.
    door = Path(torch.__file__).parent / "lib" / "libcaffe2_nvrtc.so"
    wanted = re.findall(r"U (cu\w+)", _output("nm", "--dynamic", "--undefined-only", str(door)))
    own = SOURCE.read_text()
    others.write_text(
        "\n".join(f'extern "C" int {name}() {{ return 1; }}' for name in wanted if name not in own)
    )
    options = ["-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", str(library)]
    _output("g++", *options, str(SOURCE), str(others))
    return library


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


class FakeCuda:
    """Runs functions where CUDA is pretended."""

    def __init__(self, library: Path) -> None:
        """Starts the process.

        Args:
            library: of `compile_devices`.
        """
        context = multiprocessing.get_context("spawn")
        self._connection, its_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(its_end,), daemon=True)
        former = os.environ.copy()
        os.environ |= {
            "LD_PRELOAD": str(library),
            "CUDA_VISIBLE_DEVICES": "",
            "DS_ACCELERATOR": "cuda",
            "OMP_NUM_THREADS": "1",
        }
        try:
            self._process.start()
        finally:
            os.environ.clear()
            os.environ |= former
        its_end.close()

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What the function returns; it must be importable, and its result can be pickled.

        Raises:
            AssertionError: the function raised an error, or its process died.
        """
        self._connection.send((function, args, kwargs))
        is_good, answer = self._connection.recv()
        assert is_good, answer
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()


def _serve(connection: Connection) -> None:
    from tests.fake_cuda import runtime

    runtime.pretend()
    import deepspeed.runtime.engine

    import vggdist.pretrain  # noqa: F401

    # Its compiler is not used, and takes longer to load than all else.
    deepspeed.runtime.engine.is_deepcompile_supported = lambda: False
    while True:
        try:
            function, args, kwargs = connection.recv()
        except EOFError:
            return
        fork = os.fork()
        if fork == 0:
            signal.alarm(LONGEST_SECONDS)
            try:
                answer = pickle.dumps((True, function(*args, **kwargs)))
            except BaseException:
                answer = pickle.dumps((False, traceback.format_exc()))
            connection.send_bytes(answer)
            os._exit(0)
        _, status = os.waitpid(fork, 0)
        if status:
            connection.send((False, f"the process ended with {os.waitstatus_to_exitcode(status)}"))
