"""What a person sees while training: one line that renews itself, or plain lines in a log file."""

import logging
import shutil
import sys
import time
from typing import TextIO

from vggdist.data.progress import duration

logger = logging.getLogger(__name__)


class ProgressLine:
    """Progress of the main rank on `stream`: renewed in place on a terminal, else at log steps."""

    def __init__(self, total_steps: int, stream: TextIO = sys.stderr) -> None:
        self._total = total_steps
        self._stream = stream
        self._live = stream.isatty()
        self._text = ""
        self._shown_at = 0.0

    def log(self, step: int, epoch: float, values: dict[str, float], seconds_left: float) -> None:
        """At a log step: a plain line, and the numbers that the live line shows from now on."""
        # What matters most comes first: a narrow terminal cuts the end.
        self._text = (
            f"left {duration(seconds_left)}  loss {values['loss']:.4f}  "
            f"top-1 error {100 * values['top1_error']:.1f} %  "
            f"{values.get('images_per_second', 0.0):.1f} images/s  "
            f"data wait {100 * values.get('data_wait', 0.0):.0f} %  epoch {epoch:.2f}"
        )
        # `pretrain.run` keeps these lines from a terminal, which has the live line.
        logger.info("step %d/%d  %s", step, self._total, self._text)
        if self._live:
            self._show(step)

    def tick(self, step: int) -> None:
        """After every step: renews the live line, at most five times a second."""
        if self._live and time.monotonic() - self._shown_at > 0.2:
            self._show(step)

    def clear(self) -> None:
        """Before other lines are written."""
        if self._live:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def _show(self, step: int) -> None:
        self._shown_at = time.monotonic()
        # A line that wraps could not be renewed: the terminal would only go back in its last part.
        line = f"step {step}/{self._total}  {self._text}"[: shutil.get_terminal_size().columns - 1]
        self._stream.write(f"\r\x1b[K{line}")
        self._stream.flush()
