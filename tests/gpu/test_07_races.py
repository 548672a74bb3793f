"""Batches that wait in a queue, or are used late, are the same as those used at once.

The loader decodes on a stream of its own into memory that comes and goes. Were any of it lent again
too early, a slow consumer would read other images' pixels.
"""

import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vggdist.config import BatchSplit, DataConfig
from vggdist.data.batch import Batch
from vggdist.data.dataset import open_dataset
from vggdist.data.loader import TrainingLoader
from vggdist.data.plan import SamplePlan

pytestmark = pytest.mark.gpu

MICRO = 32
DEVICE_CYCLES = 5_000_000  # some milliseconds


def digest(batch: Batch) -> Tensor:
    """(n, 5): of each image two weighted means in grey levels, its label, mean and dropout key."""
    pixels = batch.pixels.double().mean(dim=1).flatten(1)
    weights = torch.linspace(0, 2, pixels.shape[1], dtype=torch.float64, device=pixels.device)
    numbers = (batch.labels, batch.mean[:, 0], batch.dropout_keys)
    columns = [
        pixels.mean(dim=1),
        (pixels * weights).mean(dim=1),
        *(one.double() for one in numbers),
    ]
    return torch.stack(columns, dim=1)


def digests(root: Path, device: torch.device, num_batches: int, pace: str) -> Tensor:
    """Of all batches, (num_batches, n, 5).

    Args:
        pace: of the consumer. `fast` takes them one after the other; `slow host` pauses before it
            takes one, so that the loader fills its queues; `slow device` has the device wait before
            it reads a batch, while the host takes the next ones and forgets them.
    """
    images, data = open_dataset(root).train, DataConfig(train_scale_min=256, train_scale_max=384)
    plan = SamplePlan(images.num_images, data, MICRO, seed=0)
    split = BatchSplit(MICRO, MICRO, 1, 1)
    found = []
    with TrainingLoader(
        images, plan, data, split, device=device, last_step=num_batches, num_threads=4
    ) as loader:
        for batch in loader:
            if pace == "slow host":
                time.sleep(0.01)
            elif pace == "slow device" and device.type == "cuda":
                torch.cuda._sleep(DEVICE_CYCLES)
            found.append(digest(batch))
            del batch
    return torch.stack(found).cpu()


@pytest.mark.parametrize("pace", ["fast", "slow host", "slow device"])
def test_every_batch_is_the_one_of_another_run_whatever_the_consumer_s_pace(
    pace, photos, device, rehearsal, figure
):
    num_batches = 12 if rehearsal else 300
    expected = digests(photos, device, num_batches, "fast")
    began_at = time.monotonic()
    found = digests(photos, device, num_batches, pace)
    figure("images/s", MICRO * num_batches / (time.monotonic() - began_at))
    equal = (found == expected).flatten(1).all(dim=1).sum().item()
    figure("batches equal bit for bit", f"{equal} of {num_batches}")
    # Which decoder gets an image may change, and with it some pixels by a level; the means of two
    # photos are some levels apart.
    assert (found[..., :2] - expected[..., :2]).abs().max() < 0.5
    assert torch.equal(found[..., 2:], expected[..., 2:])
