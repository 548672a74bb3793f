"""DeepSpeed's ZeRO stages 1 and 2: what differs from stage 0, and the choice between them.

DeepSpeed reduces and clips the gradients, keeps the weights in one flat buffer, divides the
momentum among the ranks, and detects an overflow on the host.
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vggdist.config import BatchSplit, Config
from vggdist.distributed.process import Process
from vggdist.model.vgg import VGG
from vggdist.training.engine import Engine
from vggdist.training.optimizer import MaskedSGD, build_optimizer, trained_parameters
from vggdist.training.ranges import named

logger = logging.getLogger(__name__)


def build_engine(
    network: VGG,
    config: Config,
    split: BatchSplit,
    process: Process,
    exchange_state: Mapping[str, Any] | None = None,
) -> Engine:
    """The engine of the configured ZeRO stage; collective. Arguments as for `Engine`."""
    kind = ZeroEngine if config.zero_stage else Engine
    return kind(network, config, split, process, exchange_state)


class ZeroEngine(Engine):
    """The engine at ZeRO stage 1 or 2; it has no `exchange`."""

    def _build_optimizer(self, network: nn.Module) -> MaskedSGD:
        unclipped = self.config.optimizer.model_copy(update={"gradient_clipping": 0.0})
        return build_optimizer(trained_parameters(network).values(), unclipped)

    def _set_up(
        self, split: BatchSplit, process: Process, exchange_state: Mapping[str, Any] | None
    ) -> torch.amp.GradScaler | None:
        logger.warning(
            "zero_stage %d keeps weights in one flat buffer, so convolution weights are not "
            "channels_last and are converted in every forward pass; zero_stage 0 keeps them.",
            self.config.zero_stage,
        )
        self._zero = self._engine.optimizer
        scaler: torch.amp.GradScaler | None = self._zero.torch_autocast_gradscaler
        return scaler

    def _update(self) -> None:
        clipping = self.config.optimizer.gradient_clipping
        if self._scaler is not None and clipping:
            # ZeRO clips gradients without removing the loss scale.
            self._zero.clip_grad = clipping * self.loss_scale()
        with named("update"):  # with what DeepSpeed still has to exchange
            self._engine.step()
        self._norm = self._engine.get_global_grad_norm()
        if self._scaler is not None and self._zero.overflow:
            # ZeRO returns before it updates its scaler, and would overflow forever.
            state = self._scaler.state_dict()
            lower = {"scale": state["scale"] * state["backoff_factor"], "_growth_tracker": 0}
            self._scaler.load_state_dict(state | lower)

    def exchange_wait(self) -> None:
        """Only DeepSpeed knows it."""

    @property
    def masked(self) -> Tensor:
        """Float (1,) on the device, equal on all ranks: 1 if the latest update was skipped."""
        # Not `tensor([...])`, a copy from the host, which waits for the device.
        return torch.full((1,), float(self._zero.overflow), device=self.device)

    @torch.no_grad()
    def load(
        self,
        weights: Mapping[str, Tensor],
        momentum: Mapping[str, Tensor],
        scaler_state: Mapping[str, Any],
    ) -> None:
        """As `Engine.load`; the optimizer's copy of the weights follows them."""
        super().load(weights, momentum, scaler_state)
        self._zero.refresh_fp32_params()

    def _start_momentum(self) -> None:
        super()._start_momentum()
        # Links momentum to parameters, which ZeRO does only at its first step.
        self._zero._lazy_init_hp_params_optimizer_state()

    def _momentum_of(self, parameter: nn.Parameter) -> Tensor:
        momentum: Tensor = self._deepspeed.utils.safe_get_full_optimizer_state(
            parameter, "momentum_buffer"
        )
        return momentum

    def _set_momentum(self, parameter: nn.Parameter, value: Tensor) -> None:
        self._deepspeed.utils.safe_set_full_optimizer_state(
            parameter, value.to(self.device), "momentum_buffer"
        )
