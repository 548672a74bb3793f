"""The curves in TensorBoard: their groups, what each shows, and the charts that show several.

A tag is `group/name`; `metrics.jsonl` has the same numbers of training and validation under their
own names.
"""

from collections.abc import Iterator, Mapping

_TRAINING = "of the training images since the last point, with dropout"
_VALIDATION = "of the whole validation set, one centre crop per image"

DESCRIPTIONS = {
    "train/loss": f"Mean cross-entropy {_TRAINING}.",
    "train/top1_error": f"Share {_TRAINING}, whose class is not the most probable one.",
    "train/top5_error": f"Share {_TRAINING}, whose class is not among the five most probable.",
    "validation/loss": f"Mean cross-entropy {_VALIDATION}.",
    "validation/top1_error": f"Top-1 error {_VALIDATION}; a fraction.",
    "validation/top5_error": f"Top-5 error {_VALIDATION}; a fraction.",
    "validation/best_top1_error": "The lowest top-1 error of the evaluations so far.",
    "validation/epoch": "Passes over the training images before the evaluation.",
    "progress/epoch": "Passes over the training images so far.",
    "progress/hours_left": "Hours to the last step at the speed so far, evaluations included. The "
    "plateau schedule may end sooner.",
    "progress/picture_seconds": "Seconds for the pictures of an evaluation.",
    "progress/unusable_images": "Images found bad so far, each replaced by another.",
    "optimizer/learning_rate": "Of the step. `schedule` under Text says when and why it fell.",
    "optimizer/learning_rate_fell": "A point where the learning rate fell, at its new value; "
    "`schedule` under Text says why.",
    "optimizer/gradient_norm": "Norm of the whole gradient of one step, the mean over ranks, "
    "before clipping.",
    "optimizer/loss_scale": "The factor by which fp16's loss is multiplied.",
    "optimizer/masked_steps": "Steps so far whose update was left out, since fp16 overflowed.",
    "throughput/images_per_second": "Of all ranks since the last point, in steps only: evaluations "
    "and checkpoints do not count.",
    "throughput/images_per_second_overall": "The same since the first step.",
    "throughput/images_per_second_without_wait": "The same since the last point, had the main rank "
    "never waited for images.",
    "throughput/data_wait": "Share of the time that the main rank waited for images. Above a few "
    "percent, reading and decoding are the bottleneck.",
    "throughput/exchange_wait": "Share of the time that the main rank waited for gradients of the "
    "ranks: what the exchange costs beyond what the backward pass hides.",
    "throughput/model_flop_utilization": "Arithmetic of the network per second, as a share of the "
    "device's peak.",
    "system/device_memory_gb": "GPU memory that torch has reserved on the main rank, in GB.",
    "system/gpu_utilization": "Percent of the last second in which the main rank's GPU computed.",
    "system/gpu_power_watts": "Power that the main rank's GPU draws.",
    "system/gpu_clock_mhz": "Clock of the main rank's GPU; it falls when the GPU is hot or at its "
    "power limit.",
    "system/host_memory_gb": "Memory in use on the main rank's host, by all processes, in GB.",
    "system/host_load": "Processes that run or wait to run on the main rank's host, mean of the "
    "last minute, per CPU core; above 1, they wait for each other.",
    "system/process_memory_gb": "Memory of the main rank's process, in GB.",
    "system/read_mb_per_second": "What the main rank has read from files since the last point; "
    "memory-mapped shards do not count.",
    "system/disk_read_mb_per_second": "What of it came from a disk or the network and not from the "
    "system's cache; memory-mapped shards count.",
}
"""Tag -> what the curve shows."""

_OF_LAYERS = {
    "gradient_norm": "Norm of the gradient of this layer's weights in one step, the mean over "
    "ranks, before clipping.",
    "weight_norm": "Norm of this layer's weights.",
    "update_ratio": "Norm of a step's change of this layer's weights over the norm of the weights. "
    "About 0.001 is healthy; far below, the layer hardly learns, far above, it is unstable.",
}
"""Group of a curve for each layer -> what it shows."""

HISTOGRAMS = {
    "weights": "The weights of this layer.",
    "gradients": "The gradient of this layer's weights in one step, the mean over ranks, before "
    "clipping. Layers whose gradients are sent as factors have none: these are never in memory as "
    "a whole (exchange, in the configuration).",
}

_GROUPS = {
    "train": {
        "learning_rate": "optimizer",
        "gradient_norm": "optimizer",
        "loss_scale": "optimizer",
        "masked_steps": "optimizer",
        "images_per_second": "throughput",
        "images_per_second_overall": "throughput",
        "images_per_second_without_wait": "throughput",
        "data_wait": "throughput",
        "exchange_wait": "throughput",
        "model_flop_utilization": "throughput",
        "epoch": "progress",
        "hours_left": "progress",
        "unusable_images": "progress",
    },
}
"""Split -> names that stand in another group than that of the split."""

_CHARTS = {
    "Learning": {
        "Loss": "(train|validation)/loss",
        "Top-1 error": "(train|validation)/(best_)?top1_error",
        "Top-5 error": "(train|validation)/top5_error",
        "Learning rate, and where it fell": "optimizer/learning_rate(_fell)?",
        "Hours left": "progress/hours_left",
    },
    "Throughput": {
        "Images per second": "throughput/images_per_second(_without_wait|_overall)?",
        "Share of the time": "throughput/(data_wait|exchange_wait|model_flop_utilization)",
    },
    "System": {
        "GPU utilization (%)": "system/gpu_utilization",
        "GPU power (W) and clock (MHz)": "system/gpu_(power_watts|clock_mhz)",
        "Memory (GB)": "system/(device|host|process)_memory_gb",
        "Load per CPU core": "system/host_load",
        "Reading (MB/s)": "system/(disk_)?read_mb_per_second",
    },
    "Layers": {
        "Gradient norms": "gradient_norm/.+",
        "Weight norms": "weight_norm/.+",
        "Update ratios": "update_ratio/.+",
        "Loss scale": "optimizer/loss_scale",
    },
}
"""Category -> title of a chart -> its tags, as a regular expression."""


def tag_of(split: str, name: str) -> str:
    """The tag of a number of a point: `train`, `data_wait` -> `throughput/data_wait`."""
    return f"{_GROUPS.get(split, {}).get(name, split)}/{name}"


def description_of(tag: str) -> str:
    """What a curve shows; empty where nothing is known of it."""
    return DESCRIPTIONS.get(tag) or _OF_LAYERS.get(tag.partition("/")[0], "")


def charts(left_out: Mapping[str, bool]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Categories of charts, and the title and the tags of each chart.

    Args:
        left_out: titles of charts, and whether this training has nothing for them.
    """
    for category, titles in _CHARTS.items():
        # Anchored: TensorBoard only asks that a tag begins with a match.
        shown = [(t, f"^{tags}$") for t, tags in titles.items() if not left_out.get(t)]
        if shown:
            yield category, shown
