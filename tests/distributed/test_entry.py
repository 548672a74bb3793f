"""The first seconds of every command: Ctrl-C ends it, and nothing is said."""

import errno
import io
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vggdist.cli import parse
from vggdist.distributed import entry
from vggdist.errors import ConfigError

ROOT = Path(__file__).parents[2]
RUN = "from vggdist.distributed.entry import run"
STUB = "import sys; from vggdist.cli import main; sys.argv[0] = 'vggdist'; sys.exit(main())"
"""What pip makes of the entry point."""


def ended(folder: Path, *words: str) -> tuple[int, str, str]:
    """Runs Python with modules of `folder` before all others; its end, output and errors."""
    path = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *words],
        env=os.environ | {"PYTHONPATH": path},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("command", "module"),
    [
        (["launch/train.py", "--print-config"], "yaml"),
        (["launch/train.py", "data.root=/nowhere"], "torch"),
        (["launch/evaluate.py", "w", "--data", "/nowhere"], "pydantic"),
        (["launch/evaluate.py", "w", "--data", "/nowhere"], "torch"),
        (["launch/submit.py", "--dry-run"], "submitit"),
        (["-m", "vggdist.cli", "check", "/nowhere"], "numpy"),
        (["-c", STUB, "predict", "w", "a.jpg"], "argparse"),
        (["-c", STUB, "predict", "w", "a.jpg"], "torch"),
    ],
)
def test_an_interrupt_amid_imports_ends_the_process_without_a_word(
    command: list[str], module: str, tmp_path: Path
) -> None:
    """Also where what imports makes another error of it, or none."""
    (tmp_path / f"{module}.py").write_text(
        "import os, signal, sys, time\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(30)\n"
        "except KeyboardInterrupt:\n"
        "    raise ImportError('a compiled module did not come up') from None\n"
    )
    code, out, err = ended(tmp_path, *command)
    assert (code, out) == (130, "")
    # A training says that it starts before it imports torch.
    is_started = "launch/train.py" in command and module == "torch"
    assert err.count("\n") == err.count(" starting 1 rank of configuration D in ") == is_started


def test_an_interrupt_of_the_work_ends_the_process_without_a_word() -> None:
    cleaned_up = []

    def work() -> int:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            cleaned_up.append(True)
        return 0

    before = signal.getsignal(signal.SIGINT)
    try:
        assert entry.run(work) == 130
        assert cleaned_up
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_process_that_ignores_interrupts_goes_on_ignoring_them() -> None:
    """As those that a script starts with & do."""
    work = "os.kill(os.getpid(), 2) or print('at work') or 0"
    code = f"import os, sys; {RUN}; sys.exit(run(lambda: {work}))"
    shell = f"trap '' INT; exec {shlex.quote(sys.executable)} -c {shlex.quote(code)}"
    done = subprocess.run(
        ["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("at work\n", "")


def test_what_a_user_can_solve_is_a_sentence_and_an_exit_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work() -> int:
        raise ConfigError("a is b; set it to c.")

    assert entry.run(work) == 2
    assert capsys.readouterr().err == "error: a is b; set it to c.\n"


def test_a_full_disk_is_told_in_place_of_a_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    terminal.write("step 3/10")
    assert entry.end_of_full_disk(OSError(errno.ENOSPC, "No space left on device")) == 1
    assert terminal.getvalue().startswith("step 3/10\r\x1b[Kerror: ")


def test_names_of_any_bytes_are_printed(tmp_path: Path) -> None:
    code = f"import sys; {RUN}; sys.exit(run(lambda: print('\\udcff') or 0))"
    assert ended(tmp_path, "-c", code) == (0, "\\udcff\n", "")


def test_warnings_of_libraries_stay_off_the_terminal_unless_they_are_asked_for(
    tmp_path: Path,
) -> None:
    (tmp_path / "torch.py").write_text(
        "import os, sys, warnings\n"
        "print(os.environ.get('TORCH_CPP_LOG_LEVEL'))\n"
        "warnings.warn('it is deprecated', FutureWarning)\n"
        "sys.exit(7)\n"
    )
    train = ("-m", "vggdist", "train")
    code, out, err = ended(tmp_path, *train)
    assert (code, out, err.count("\n")) == (7, "ERROR\n", 1)
    _, _, err = ended(tmp_path, "-W", "default", *train)
    assert "FutureWarning: it is deprecated" in err


@pytest.mark.parametrize("option", ["--local_rank=0", "--local-rank=0"])
def test_launchers_may_say_the_local_rank_in_either_way(option: str, tmp_path: Path) -> None:
    for command in (["launch/train.py", option, "--print-config"], ["launch/evaluate.py", option]):
        code, _, err = ended(tmp_path, *command, "--help")
        assert (code, err) == (0, "")
    assert parse([option, "summary"]).local_rank == 0
