"""Memory that a training step takes on each rank, in bytes, counted before it is taken. No torch.

Follows the tensors of the last micro batch through its backward pass: what the forward pass has
kept becomes less, gradients become more, and the most lies between. A test holds the count to that
of real steps on pretended tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

from vggdist.config import FULLY_CONNECTED, BatchSplit, Config, trained_layers
from vggdist.distributed.traffic import BUCKET_ELEMENTS, ELEMENT_BYTES
from vggdist.model.summary import LayerSummary, summarize

FP32_BYTES, INDEX_BYTES, MASK_BYTES = 4, 8, 1
_LRN_KEPT, _LRN_PASSING = 3, 5
"""Maps in fp32 that LRN keeps for its backward pass, beyond its input, and that are there at once
within it."""


@dataclass(frozen=True)
class _Moment:
    """Bytes that are there at one moment of the step, besides what always is."""

    activations: int
    gradients: int
    rounded_weights: int
    exchange: int

    @property
    def total(self) -> int:
        return self.activations + self.gradients + self.rounded_weights + self.exchange


def count_memory(config: Config, split: BatchSplit, ways: Mapping[str, str]) -> dict[str, int]:
    """Bytes by what they are for at the moment of the most, and their sum, `total`.

    What CUDA, cuDNN, NCCL, DALI and torch's allocator take for themselves is not counted.

    Args:
        split: of the images of a step.
        ways: how each fully connected gradient is sent, `all_reduce` or `factors`; none of a rank
            that is alone.
    """
    return _Step(config, split, ways).most()


class _Step:
    """The layers of a training and how much of each is there."""

    def __init__(self, config: Config, split: BatchSplit, ways: Mapping[str, str]) -> None:
        self._config, self._split, self._ways = config, split, ways
        self._element = ELEMENT_BYTES[config.resolved_precision]
        self._rows = summarize(config.model, config.data.crop_size).layers
        trained = set(trained_layers(config))
        weights = [row.name for row in self._rows if row.multiply_adds]
        first = min(number for number, name in enumerate(weights) if name in trained)
        names = [row.name for row in self._rows]
        self._first = names.index(weights[first])
        """Rows before it have no gradients."""
        self._trained = trained | {name.replace("conv", "norm") for name in trained}

    def most(self) -> dict[str, int]:
        config, split = self._config, self._split
        parameters = sum(row.num_parameters for row in self._rows)
        trained = sum(row.num_parameters for row in self._rows if row.name in self._trained)
        pixels = 3 * config.data.crop_size**2
        moment = max(self._moments(), key=lambda moment: moment.total)
        memory = {
            "weights": FP32_BYTES * parameters,
            "gradients": moment.gradients,
            "momentum": FP32_BYTES * trained if config.optimizer.momentum else 0,
            "weights_for_arithmetic": moment.rounded_weights,
            "activations": moment.activations,
            # As the network takes them, and in 8 bits: these, and those that are queued.
            "images": split.micro * pixels * (self._element + 1 + config.data.prefetch),
            "exchange": moment.exchange,
        }
        if config.cuda_graph:
            # The batches that it reads; and an evaluation, which finds its memory taken.
            images = (config.evaluation.micro or split.micro) / split.micro
            evaluation = round(images * self._most_passing(self._rows))
            memory["graph"] = split.per_rank * pixels + evaluation
        return {**memory, "total": sum(memory.values())}

    def _moments(self) -> Iterator[_Moment]:
        accumulates = self._split.accumulation_steps > 1
        whole = sum(FP32_BYTES * row.num_parameters for row in self._rows if self._is_whole(row))
        now = _Moment(
            activations=sum(self._kept(number) for number in range(len(self._rows))),
            gradients=whole if accumulates else 0,
            rounded_weights=sum(self._rounded(row) for row in self._rows),
            exchange=0,
        )
        # Of autocast's copies hardly any is there yet.
        frozen = self._most_passing(self._rows[: self._first])
        yield replace(now, activations=frozen, rounded_weights=0)
        yield now
        for number in reversed(range(self._first, len(self._rows))):
            row = self._rows[number]
            out = self._bytes_of(row)
            into = self._bytes_of(self._rows[number - 1]) if number > self._first else 0
            kept = now.activations
            if row.kind == "LRN":
                passing = FP32_BYTES // self._element * _LRN_PASSING * out
                yield replace(now, activations=kept - out + passing)
            elif not row.num_parameters:
                # The layer behind a pooling has let its outputs go; their gradient is as large.
                yield replace(now, activations=kept + into)
            elif not row.multiply_adds or not self._is_normalized(number):
                yield replace(now, activations=kept + 2 * out)  # ReLU
            now = replace(now, activations=kept - self._kept(number))
            if row.name not in self._trained:
                continue
            passing = now.activations + into
            own, gradient = self._rounded(row), FP32_BYTES * row.num_parameters
            if not self._is_whole(row):
                now = replace(now, exchange=now.exchange + self._factors(number))
                yield replace(now, activations=passing + out)
            else:
                # As it is computed, and then in fp32.
                yield replace(now, activations=passing + out + (own or gradient))
                if own:
                    both = replace(now, rounded_weights=now.rounded_weights - own)
                    yield replace(both, activations=passing + own + gradient)
                now = replace(
                    now,
                    gradients=now.gradients + (0 if accumulates else gradient),
                    exchange=now.exchange + self._sent(row),
                )
            now = replace(now, rounded_weights=now.rounded_weights - own)
        factored = sum(
            FP32_BYTES * row.num_parameters
            for row in self._rows
            if row.name in self._trained and not self._is_whole(row)
        )
        if not self._config.updates_by_blocks:
            now = replace(now, gradients=now.gradients + factored)
        yield replace(now, activations=0)

    def _bytes_of(self, row: LayerSummary) -> int:
        """Of its outputs."""
        return self._element * self._split.micro * prod(row.output_shape)

    def _kept(self, number: int) -> int:
        """Bytes that autograd keeps of a row until its backward pass."""
        if number < self._first - 1:
            return 0
        row = self._rows[number]
        kept, units = self._bytes_of(row), self._split.micro * prod(row.output_shape)
        if number < self._first:
            return kept
        if row.kind == "LRN":
            rounded_input = self._element < FP32_BYTES
            return kept + FP32_BYTES * (_LRN_KEPT + rounded_input) * units
        if row.name in FULLY_CONNECTED[:-1]:  # with dropout's mask, and what it leaves
            return 2 * kept + MASK_BYTES * units
        return kept + self._indices(row)

    def _most_passing(self, rows: Sequence[LayerSummary]) -> int:
        """What rows that keep nothing have at once in the forward pass: inputs and outputs."""
        return max(
            (
                self._bytes_of(before) + self._bytes_of(row) + self._indices(row)
                for before, row in pairwise(rows)
            ),
            default=0,
        )

    def _indices(self, row: LayerSummary) -> int:
        """The places that a max-pooling remembers."""
        is_pooling = row.kind.startswith("max-pooling")
        return INDEX_BYTES * self._split.micro * prod(row.output_shape) if is_pooling else 0

    def _is_normalized(self, number: int) -> bool:
        return any(row.kind == "batch normalization" for row in self._rows[number + 1 :][:1])

    def _is_whole(self, row: LayerSummary) -> bool:
        """Whether its gradient is made by the backward pass."""
        return row.name in self._trained and self._ways.get(row.name) != "factors"

    def _rounded(self, row: LayerSummary) -> int:
        """Autocast's copy of its weights."""
        is_rounded = self._element < FP32_BYTES and row.multiply_adds
        return self._element * row.num_parameters if is_rounded else 0

    def _sent(self, row: LayerSummary) -> int:
        """The 16-bit copy of a gradient, or that of small ones which are sent together."""
        element = ELEMENT_BYTES[self._config.sent_precision]
        if self._split.world_size == 1:
            return 0
        if element == FP32_BYTES and row.num_parameters >= BUCKET_ELEMENTS:
            return 0
        return element * row.num_parameters

    def _factors(self, number: int) -> int:
        """Of all ranks' images."""
        inputs, units = (prod(self._rows[k].output_shape) for k in (number - 1, number))
        size = ELEMENT_BYTES[self._config.factor_precision]
        return size * self._split.global_batch * (inputs + units)
