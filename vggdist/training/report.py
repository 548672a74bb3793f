"""The report of a finished training: `result.json`, `predictions.png`, a short table."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.table import Table
from rich.text import Text
from torch import Tensor

from vggdist.artifacts import run_files
from vggdist.artifacts.paths import quote
from vggdist.data.batch import Batch
from vggdist.evaluation.confusion import worst_classes
from vggdist.evaluation.contact_sheet import Prediction, contact_sheet
from vggdist.evaluation.metrics import TOP5
from vggdist.terminal import duration, render
from vggdist.training.board import TENSORBOARD_FOLDER
from vggdist.training.loop import Training
from vggdist.training.pictures import displayable

PREDICTIONS_FILE = "predictions.png"


def write_result(training: Training, classes: Sequence[str], folder: Path) -> dict[str, Any]:
    """Writes `result.json`; errors are fractions, speeds are over all ranks and steps.

    Model FLOP utilization, a fraction, and the peak that it is of are there where that is known.

    The file also has the evaluation with the lowest error, the errors by class and the most
    confused pairs, the steps at which the learning rate fell, the reason for the end of the
    training, and the digests of the manifests.
    """
    assert training.errors is not None
    result: dict[str, Any] = {
        "top1_error": training.errors.top1_error,
        "top5_error": training.errors.top5_error,
        "images_per_second": training.throughput.images_per_second,
        "steps": training.step,
        "seconds": training.elapsed_seconds,
        "unusable_images": len(training.known_bad.found),
    }
    if (best := training.best.known) is not None:
        result["best"] = {
            "top1_error": best.top1_error,
            "step": best.step,
            "epoch": best.epoch,
            "kept": best.folder is not None,
        }
    if training.observer.utilization.peak:
        result |= training.observer.utilization.of(training.throughput.images_per_second)
        result["peak"] = training.observer.utilization.peak
    result |= {
        "ended": training.schedule.end(training.step),
        "decreases": [fall._asdict() for fall in training.schedule.decreases(training.step)],
        "data": training.data_digests,
        **training.errors.classes.to_dict(classes),
    }
    run_files.write_result(folder, result)
    return result


@torch.no_grad()
def draw_predictions(
    network: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    classes: tuple[str, ...],
    mean: tuple[float, float, float],
) -> Image.Image:
    """A contact sheet of the images in `batches` with their predictions."""
    predictions = []
    for batch in batches:
        confidences, labels = network(batch.images).float().softmax(dim=1).max(dim=1)
        predictions += [
            Prediction(picture, classes[truth], classes[label], confidence)
            for picture, truth, label, confidence in zip(
                displayable(batch.images, mean, batch.std),
                batch.labels.tolist(),
                labels.tolist(),
                confidences.tolist(),
                strict=True,
            )
        ]
    return contact_sheet(predictions)


def print_result(result: Mapping[str, Any], folder: Path) -> None:
    """The short table at the end, and the classes that fail."""
    title = Text(f"Training finished: {quote(folder)}")
    table = Table(show_header=False, title=title, title_justify="left")
    table.add_row("top-1 error", f"{100 * result['top1_error']:.2f} %")
    if len(result.get("classes", ())) > TOP5:
        table.add_row("top-5 error", f"{100 * result['top5_error']:.2f} %")
    if (best := result.get("best")) is not None:
        where = quote(f"{folder}{run_files.BEST_SUFFIX}") if best["kept"] else "not kept"
        told = f"{100 * best['top1_error']:.2f} % at epoch {best['epoch']:.2f}: {where}"
        table.add_row("best top-1 error", Text(told))
    table.add_row("images/s", f"{result['images_per_second']:.1f}")
    if "model_flop_utilization" in result:
        share = f"{100 * result['model_flop_utilization']:.1f} % of {result['peak']}"
        table.add_row("model FLOP utilization", share)
    table.add_row("steps", f"{result['steps']:.0f} in {duration(result['seconds'])}")
    if result["unusable_images"]:
        table.add_row("unusable images", f"{result['unusable_images']:.0f}, others shown instead")
    table.add_row("run folder", Text(quote(folder)))
    table.add_row("predictions", Text(quote(folder / PREDICTIONS_FILE)))
    logdir = quote(folder / TENSORBOARD_FOLDER)
    table.add_row("curves", Text(f"tensorboard --logdir {logdir}"))
    text = render(table, width=1000, fits=False)  # without line breaks, so that paths can be copied
    sys.stdout.write("\n".join([text, *worst_classes(result)]) + "\n")
