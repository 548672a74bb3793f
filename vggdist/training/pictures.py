"""Pictures for TensorBoard, drawn by the main rank: what the network is fed, and where it errs."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggdist.config import DataConfig, Triple
from vggdist.data.batch import Batch
from vggdist.errors import VggdistError, in_words
from vggdist.evaluation.confusion_picture import draw_class_errors, picture_name
from vggdist.evaluation.contact_sheet import Prediction, contact_sheet, labelled_sheet
from vggdist.evaluation.metrics import Errors
from vggdist.training.metrics import MetricLog

logger = logging.getLogger(__name__)


@dataclass
class Pictures:
    """Draws them and hands them to the log; one that cannot be drawn costs a line, no training."""

    log: MetricLog
    classes: tuple[str, ...]
    data: DataConfig
    num_fed: int
    """Images of a batch that are shown; 0: none."""
    open_crops: Callable[[Sequence[int]], AbstractContextManager[Iterable[Batch]]]
    """Numbers of validation images -> their centre crops, in that order."""

    def show_fed(self, batch: Batch, step: int) -> None:
        """The first images of a training batch, as the network gets them."""
        if self.num_fed:
            shown = displayable(batch.images[: self.num_fed], self.data.mean, self.data.std)
            names = [self.classes[label] for label in batch.labels[: self.num_fed].tolist()]
            self.log.write_picture("fed", labelled_sheet(list(shown), names), step)

    def show_errors(self, errors: Errors, step: int) -> float:
        """The worst mistakes and the classes that fail; returns the seconds that it took."""
        began_at = time.monotonic()
        try:
            if errors.mistakes:
                self.log.write_picture("mistakes", contact_sheet(self._predictions(errors)), step)
        except (OSError, VggdistError) as error:
            logger.warning("the worst mistakes are not shown in TensorBoard: %s", in_words(error))
        classes = draw_class_errors(errors.classes, self.classes)
        self.log.write_picture(picture_name(len(self.classes)), classes, step)
        seconds = time.monotonic() - began_at
        self.log.write_mark("progress/picture_seconds", seconds, step)
        return seconds

    def _predictions(self, errors: Errors) -> list[Prediction]:
        with self.open_crops([mistake.image for mistake in errors.mistakes]) as batches:
            crops = [
                crop
                for batch in batches
                for crop in displayable(batch.images, self.data.mean, self.data.std)
            ]
        return [
            Prediction(crop, self.classes[truth], self.classes[prediction], confidence)
            for crop, (_, truth, prediction, confidence) in zip(crops, errors.mistakes, strict=True)
        ]


def displayable(images: Tensor, mean: Triple, std: Triple) -> NDArray[np.uint8]:
    """Network inputs (n, 3, h, w), (pixels - mean) / std -> 8-bit RGB (n, h, w, 3) on the CPU."""
    shift, scale = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (mean, std))
    levels = images.detach().float().cpu() * scale + shift
    pixels = levels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return np.ascontiguousarray(pixels.numpy())
