"""Curves: TensorBoard events and `metrics.jsonl`, written by the main rank.

After a resume no step appears twice: TensorBoard purges the points after the checkpoint, and later
lines of `metrics.jsonl` are dropped. If the checkpoint itself is evaluated again, because its
result was not saved, the evaluation is not written again.
"""

import contextlib
import logging
import math
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from vggdist.artifacts.files import JsonLines
from vggdist.artifacts.run_files import LOG_FILE, METRICS_FILE
from vggdist.config import Triple
from vggdist.errors import in_words

logger = logging.getLogger(__name__)

TENSORBOARD_FOLDER = "tensorboard"


class LogFile(logging.FileHandler):
    """`log.txt`; a full disk loses lines, which `MetricLog` reports."""

    def __init__(self, run_folder: Path) -> None:
        super().__init__(run_folder / LOG_FILE, encoding="utf-8")
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Called if a line cannot be written; logging would print a traceback for each."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        """Discards lines that could not be written."""
        with contextlib.suppress(OSError):
            super().close()


class MetricLog:
    """Writes named numbers at a step; also texts and pictures, to TensorBoard only."""

    def __init__(self, run_folder: Path, first_step: int) -> None:
        """Continues the curves of `run_folder` after step `first_step`."""
        self._first_step = first_step
        self._failed = False
        self._folder = run_folder
        self._lines = JsonLines(run_folder / METRICS_FILE)
        kept = self._lines.keep(lambda point: point["step"] <= first_step and "split" in point)
        self._there = {(point["split"], point["step"]) for point in kept}
        self._usual_hook, threading.excepthook = threading.excepthook, self._without_board
        # From 0, if an earlier start ended before its first checkpoint.
        self._board: SummaryWriter | None = self._open_board(first_step + 1 if first_step else 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._on_board(SummaryWriter.close)
        threading.excepthook = self._usual_hook

    def write(self, split: str, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """A point of every curve; `split` is train or validation and groups them."""
        if (split, step) in self._there:
            return
        # JSON has no nan or infinity.
        numbers = {name: value if math.isfinite(value) else None for name, value in values.items()}
        record = {"split": split, "step": step, "epoch": epoch, **numbers}
        with self._going_on():
            self._lines.append(record)
            if self._board is None:  # there is room again
                self._board = self._open_board()

        def write(board: SummaryWriter) -> None:
            for name, value in {"epoch": epoch, **values}.items():
                board.add_scalar(f"{split}/{name}", value, step)
            board.flush()

        self._on_board(write)

    def write_text(self, name: str, text: str, step: int | None = None) -> None:
        """A text, shown verbatim; without a step it belongs to this start."""
        if ("validation", step) in self._there:  # already written, after the same evaluation
            return
        indented = "\n".join("    " + line for line in text.splitlines())
        shown_at = self._first_step if step is None else step
        self._on_board(lambda board: board.add_text(name, indented, shown_at))

    def write_images(self, name: str, images: Tensor, step: int) -> None:
        """A grid of images (n, 3, height, width), 8-bit."""
        self._on_board(lambda board: board.add_images(name, images, step))

    def _open_board(self, purge_step: int | None = None) -> SummaryWriter:
        folder = str(self._folder / TENSORBOARD_FOLDER)
        return SummaryWriter(folder, purge_step=purge_step, flush_secs=10)

    def _on_board(self, write: Callable[[SummaryWriter], None]) -> None:
        """Writes to TensorBoard, whose thread is dead after a failure."""
        if self._board is None:
            return
        with self._going_on():
            try:
                write(self._board)
            except OSError:
                self._board = None
                raise

    def _without_board(self, failure: threading.ExceptHookArgs) -> None:
        """Ignores a failure of TensorBoard's thread: its next call raises the same error."""
        is_board = type(failure.thread).__module__.startswith("tensorboard.")
        if not (is_board and issubclass(failure.exc_type, OSError)):
            self._usual_hook(failure)

    @contextlib.contextmanager
    def _going_on(self) -> Iterator[None]:
        """A full disk loses points of the curves, not the training; reported once."""
        try:
            yield
        except OSError as error:
            if not self._failed:
                self._failed = True
                logger.error(
                    "curves and log in %s cannot be written, training continues without them: %s.",
                    self._folder,
                    in_words(error),
                )


def displayable(images: Tensor, mean: Triple, std: Triple) -> Tensor:
    """Network inputs (n, 3, h, w), (pixels - mean) / std -> 8-bit RGB on the CPU."""
    shift, scale = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (mean, std))
    return (images.detach().float().cpu() * scale + shift).round().clamp(0, 255).to(torch.uint8)
