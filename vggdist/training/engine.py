"""The DeepSpeed engine: configuration -> DeepSpeed's JSON, and network -> trainable engine.

The only module that imports DeepSpeed. `Engine` is its ZeRO stage 0; what stages 1 and 2 do
differently stands in `training/zero.py`, which also chooses.
"""

import contextlib
import io
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vggdist.config import BatchSplit, Config
from vggdist.distributed.collectives import Collectives
from vggdist.distributed.precision import DTYPES
from vggdist.distributed.process import Process
from vggdist.errors import CheckpointError
from vggdist.model.vgg import VGG
from vggdist.training.compilation import compile_for_training
from vggdist.training.cpu import arrange_convolutions, keep_freed_memory
from vggdist.training.factors import factored_layers
from vggdist.training.gradients import GradientExchange
from vggdist.training.layer_values import Histogram, histograms, layer_weights, norms
from vggdist.training.optimizer import MaskedSGD, build_optimizer, norm, trained_parameters
from vggdist.training.ranges import named
from vggdist.training.speeds import choose_ways, to_state

logger = logging.getLogger(__name__)

SMALLEST_LOSS_SCALE = 1.0
"""An fp16 overflow at this loss scale is an error: the unscaled gradients do not fit."""


def deepspeed_config(config: Config, split: BatchSplit) -> dict[str, Any]:
    """DeepSpeed's JSON for a training; every value with a surprising default is set explicitly."""
    settings: dict[str, Any] = {
        "train_batch_size": split.global_batch,
        "train_micro_batch_size_per_gpu": split.micro,
        "gradient_accumulation_steps": split.accumulation_steps,
        # DeepSpeed's default clips at 1.0. At stage 0 our optimizer clips, since DeepSpeed would
        # wait for the device.
        "gradient_clipping": config.optimizer.gradient_clipping if config.zero_stage else 0.0,
        "zero_optimization": {"stage": config.zero_stage, "overlap_comm": False},
        # ZeRO's list lacks torch's SGD, although the weights come out equal.
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
        "timers": {"throughput": {"enabled": False}},  # it waits for the device in every step
    }
    dtype = DTYPES[config.resolved_precision]
    if dtype != torch.float32:
        settings["torch_autocast"] = {
            "enabled": True,
            "dtype": str(dtype).removeprefix("torch."),
            # Without this, ZeRO reduces the gradients of these modules in 16 bits.
            "lower_precision_safe_modules": [],
        }
    return settings


class Engine:
    """A network that trains under DeepSpeed, with one interface for all precisions.

    Attributes:
        module: the network; its weights are fp32 in every precision.
        optimizer: has the learning rate, and whether the latest update was masked.
        factored: names of the layers whose gradients are sent as factors.
        compiled: whether the convolutions are compiled.
        exchange: averages the gradients over ranks; DeepSpeed does it in the other stages.
        exchange_state: what was decided about the exchange; None: nothing was.
        measure_norm: set it before a step to have `gradient_norm` and `layer_norms` after it.
        measure_histograms: set it before a step to have `gradient_histograms` after it.
        gradient_histograms: of the latest step for which it was set, by layer; none where a
            gradient is not in memory as a whole.
    """

    def __init__(
        self,
        network: VGG,
        config: Config,
        split: BatchSplit,
        process: Process,
        exchange_state: Mapping[str, Any] | None = None,
    ) -> None:
        """Collective.

        Args:
            exchange_state: of an earlier engine, which `exchange: auto` keeps if it fits.
        """
        self.config = config
        self.device = process.device
        self._num_micro = split.accumulation_steps
        self.measure_norm = self.measure_histograms = False
        self.gradient_histograms: dict[str, Histogram] = {}
        self._norm: Tensor | float | None = None
        self._norms: dict[int, Tensor] = {}
        self._scale_of_step: Tensor | float = 1.0  # of the loss, in fp16
        self.factored: tuple[str, ...] = ()
        if self.device.type == "cpu":
            keep_freed_memory()
        self.optimizer = self._build_optimizer(network)
        with quiet_deepspeed(process) as self._deepspeed:
            self._engine, *_ = self._deepspeed.initialize(
                model=network,
                optimizer=self.optimizer,
                config=deepspeed_config(config, split),
                dist_init_required=False,
            )
        self.module: nn.Module = self._engine.module
        self.exchange_state: dict[str, Any] | None = None
        self._loss_share = 1.0
        self._scaler: torch.amp.GradScaler | None = self._set_up(split, process, exchange_state)
        self._layer_weights = layer_weights(self.module)
        self.train()
        self.compiled = config.compile and compile_for_training(
            network, config, split.micro, process
        )

    def _build_optimizer(self, network: nn.Module) -> MaskedSGD:
        return build_optimizer(trained_parameters(network).values(), self.config.optimizer)

    def _set_up(
        self, split: BatchSplit, process: Process, exchange_state: Mapping[str, Any] | None
    ) -> torch.amp.GradScaler | None:
        """Prepares the network for training; returns fp16's loss scaler."""
        self._engine.enable_backward_allreduce = False
        scaler: torch.amp.GradScaler | None = self._engine.torch_autocast_z0_gradscaler
        collectives = Collectives(process.device)
        factored = []
        if split.world_size > 1:
            ways = choose_ways(self.config, split, process, collectives, exchange_state)
            self.exchange_state = to_state(ways, split)
            self.factored = tuple(layer for layer, way in ways.items() if way == "factors")
            factored = factored_layers(self.module, ways, self.config, split, tell=process.is_main)
        self.exchange = GradientExchange(
            list(trained_parameters(self.module).values()),
            self._engine.is_gradient_accumulation_boundary,
            collectives,
            factored=factored,
            dtype=DTYPES[self.config.sent_precision],
            factor_dtype=DTYPES[self.config.factor_precision],
            products=self.optimizer.products if self.config.updates_by_blocks else None,
            divisor=split.world_size if scaler is not None else 1,
        )
        if scaler is None:
            # The mean over ranks costs no pass over the gradients. A scaled loss is left alone: its
            # scale would have another meaning for each number of ranks.
            self._loss_share = 1.0 / split.world_size
        # After initialize, which views parameters as bytes and so needs them contiguous.
        arrange_convolutions(self.module, self.device, self.config.resolved_precision)
        return scaler

    def __call__(self, images: Tensor, dropout_keys: Tensor | None = None) -> Tensor:
        """Images (n, 3, c, c) -> logits (n, num_classes), in the configured precision."""
        logits: Tensor = self._engine(images, dropout_keys)
        return logits

    def backward(self, loss: Tensor) -> None:
        """Accumulates the gradients of a micro batch; the last one begins to send them."""
        # A non-finite loss can have finite gradients (an infinite logit of the wrong sign).
        # Multiplied by nan they are not finite, so one check of the gradients, shared by all ranks,
        # covers both.
        finite = torch.where(torch.isfinite(loss.detach()), self._loss_share, float("nan"))
        self._engine.backward(loss * finite)

    def step(self) -> None:
        """Ends a micro batch; the last one of a step updates the weights."""
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()
            return
        if self._scaler is not None:
            assert self._scaler._scale is not None
            self._scale_of_step = self._scaler._scale.clone()
        self._update()

    def _update(self) -> None:
        with named("exchange"):
            self.exchange.wait()
        with named("update"):
            # Before the engine's step, which may unscale and clip the gradients.
            if self.measure_norm:
                self._measure_norms()
            if self.measure_histograms:
                weights = self._layer_weights.items()
                gradients = {name: w.grad for name, w in weights if w.grad is not None}
                self.gradient_histograms = histograms(gradients, float(self._scale_of_step))
            self._engine.step()

    def _measure_norms(self) -> None:
        gradients = {id(p): p.grad for p in self.module.parameters() if p.grad is not None}
        self._norms = dict(zip(gradients, norms(gradients.values()), strict=True))
        self._norms |= {id(each.weight): each.norm() for each in self.optimizer.products}
        self._norm = norm(self._norms.values())

    def train(self) -> None:
        """Training mode: dropout and batch statistics; frozen layers keep their statistics."""
        self._engine.train()
        for normalization in normalizations(self.module, trained=False):
            normalization.eval()

    def eval(self) -> None:
        """Evaluation mode: no dropout, running statistics."""
        self._engine.eval()

    @property
    def masked(self) -> Tensor:
        """Float (1,) on the device, equal on all ranks: 1 if the latest update was skipped."""
        assert self.optimizer.masked is not None
        return self.optimizer.masked.reshape(1)

    @property
    def failed(self) -> Tensor:
        """Float (1,) on the device: 1 if training must stop.

        In fp32 and bf16 after any masked update; in fp16 only after one at the smallest loss scale.
        """
        if self._scaler is None or self._scaler._scale is None:
            return self.masked
        # The scale has been halved by now. `get_scale` would wait for the device.
        return self.masked * (self._scaler._scale < SMALLEST_LOSS_SCALE)

    def gradient_norm(self) -> float:
        """Norm of the whole gradient of the latest step, before clipping; nan if not measured."""
        if not self.measure_norm or self._norm is None:
            return float("nan")
        return float(self._norm) / float(self._scale_of_step)

    @torch.no_grad()
    def layer_norms(self) -> dict[str, float]:
        """Norms of a step by layer, such as `weight_norm/conv1_1`; waits for the device once.

        `gradient_norm`, if measured; `weight_norm`; and with momentum `update_ratio`, the norm of
        the step's change of the weights over theirs. ZeRO has only the second.
        """
        layers = list(self._layer_weights.values())
        found = {"weight_norm": torch.stack(norms(layers))}
        if all(id(weights) in self._norms for weights in layers):
            of_gradients = torch.stack([self._norms[id(weights)] for weights in layers])
            found["gradient_norm"] = of_gradients / self._scale_of_step
        states = (self.optimizer.state.get(weights, {}) for weights in layers)
        momentum = [state.get("momentum_buffer") for state in states]
        if all(buffer is not None for buffer in momentum):
            # SGD changes weights by the learning rate times the momentum.
            learning_rate = self.optimizer.param_groups[0]["lr"]
            changes = learning_rate * torch.stack(norms(momentum))
            found["update_ratio"] = changes / found["weight_norm"]
        rows = torch.stack([*found.values()]).tolist()
        return {
            f"{group}/{layer}": value
            for group, row in zip(found, rows, strict=True)
            for layer, value in zip(self._layer_weights, row, strict=True)
        }

    def weight_histograms(self) -> dict[str, Histogram]:
        """Of the weights of each trained layer; waits for the device."""
        return histograms(self._layer_weights)

    def forget_step(self) -> None:
        """Leaves nothing of a step that has failed half way; the weights are as they were."""
        self._engine.zero_grad()
        self._engine.micro_steps -= self._engine.micro_steps % self._num_micro
        self.exchange.forget_step()
        self.optimizer.products.clear()

    def exchange_wait(self) -> float | None:
        """Seconds since the last call in which this rank waited for gradients, if known."""
        return self.exchange.waited()

    def loss_scale(self) -> float:
        """fp16's loss scale, else 1; waits for the device."""
        return self._scaler.get_scale() if self._scaler is not None else 1.0

    def scaler_state(self) -> dict[str, Any]:
        """The state of fp16's loss scaler; empty without one."""
        return self._scaler.state_dict() if self._scaler is not None else {}

    def is_finite(self) -> bool:
        """Whether the weights, statistics and momentum of this rank have a finite norm in fp32.

        Norms are finite up to 1.8e19. Waits for the device.
        """
        values = [value for value in self.module.state_dict().values() if value.is_floating_point()]
        momentum = (state.get("momentum_buffer") for state in self.optimizer.state.values())
        values += [buffer for buffer in momentum if buffer is not None]
        return bool(torch.isfinite(norm(values)))

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters and buffers with their names, as they lie on the device."""
        for name, value in self.module.state_dict().items():
            yield name, value.detach()

    def momentum(self) -> Iterator[tuple[str, Tensor]]:
        """Momentum with the trained parameters' names, as it lies on the device; collective under
        ZeRO, which gathers one after the other.

        Nothing where `optimizer.momentum` is 0.
        """
        if not self.config.optimizer.momentum:
            return
        self._start_momentum()
        for name, parameter in trained_parameters(self.module).items():
            yield name, self._momentum_of(parameter).detach()

    @property
    def checkpoint_bytes(self) -> int:
        """Size of `weights` and `momentum` on disk."""
        held = [*self.module.state_dict().values()]
        if self.config.optimizer.momentum:
            held += trained_parameters(self.module).values()
        return sum(tensor.nbytes for tensor in held)

    @torch.no_grad()
    def load(
        self,
        weights: Mapping[str, Tensor],
        momentum: Mapping[str, Tensor],
        scaler_state: Mapping[str, Any],
    ) -> None:
        """Restores the results of `weights`, `momentum` and `scaler_state`, saved in any stage.

        Raises:
            CheckpointError: they are from another network.
        """
        own = self.module.state_dict()
        _check_alike("weights", own, weights)
        for name, value in weights.items():
            own[name].copy_(value)
        if self._scaler is not None and scaler_state:
            self._scaler.load_state_dict(dict(scaler_state))
        if not self.config.optimizer.momentum:
            return
        trained = trained_parameters(self.module)
        _check_alike("momentum", trained, momentum)
        self._start_momentum()
        for name, parameter in trained.items():
            self._set_momentum(parameter, momentum[name])

    def _start_momentum(self) -> None:
        self.optimizer.start_momentum()

    def _momentum_of(self, parameter: nn.Parameter) -> Tensor:
        momentum: Tensor = self.optimizer.state[parameter]["momentum_buffer"]
        return momentum

    def _set_momentum(self, parameter: nn.Parameter, value: Tensor) -> None:
        self._momentum_of(parameter).copy_(value)


def normalizations(module: nn.Module, trained: bool) -> list[nn.modules.batchnorm._BatchNorm]:
    """The trained batch normalizations, or the frozen ones."""
    return [
        part
        for part in module.modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm)
        and part.weight.requires_grad == trained
    ]


def _check_alike(kind: str, own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    different = [
        name
        for name in {**own, **saved}
        if name not in own or name not in saved or own[name].shape != saved[name].shape
    ]
    if different:
        raise CheckpointError(
            f"the checkpoint is of another network: in its {kind}, {len(different)} tensors differ "
            f"in name or shape, the first is {different[0]}. Continue it with the configuration "
            "that it was made with, or set run.resume to another one."
        )


@contextlib.contextmanager
def quiet_deepspeed(process: Process) -> Iterator[Any]:
    """DeepSpeed with the right accelerator and without its prints."""
    os.environ["DS_ACCELERATOR"] = process.device.type
    # DeepSpeed requires it even without discovery, and uses it as the GPU's number; a rank that
    # sees only its own GPU needs number 0.
    former = os.environ.get("LOCAL_RANK")
    number = process.device.index
    os.environ["LOCAL_RANK"] = str(process.local_rank if number is None else number)
    # It warns on every machine without a GPU, needlessly.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            import deepspeed

            # The one operator that it would build on a CPU is for inference, and needs a compiler
            # and up to a minute at the first start; an empty list of operators skips it.
            deepspeed.ops.__compatible_ops__ = {}
            deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
            yield deepspeed
    finally:
        os.environ.pop("LOCAL_RANK")
        if former is not None:
            os.environ["LOCAL_RANK"] = former
        for line in printed.getvalue().splitlines():
            logger.debug("deepspeed: %s", line)
