"""What exchanging gradients costs: our way compared with DDP's and DeepSpeed's, over a slow cable.

Two hosts on this machine (`hosts.py`) with one rank each run one way after the other
(`exchange_baselines.py`).
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from vggdist.config import Config, split_batch
from vggdist.config_file import load_config
from vggdist.distributed.precision import choose_precision
from vggdist.errors import ConfigError, VggdistError
from vggdist.model.configurations import configuration_name
from vggdist.profiling.hosts import Hosts
from vggdist.profiling.timing import ratios, take_turns
from vggdist.terminal import StatusLine, render_table

NAMES = {
    "ours": "vggdist",
    "ddp_fp32": "torch DDP, fp32",
    "ddp_bf16": "torch DDP, bf16 hook",
    "deepspeed_0": "DeepSpeed stage 0, bf16",
    "zero_1": "ZeRO-1 as it comes",
    "zero_2": "ZeRO-2 as it comes",
    "zero_1_bf16": "ZeRO-1 at its best",
    "zero_2_bf16": "ZeRO-2 at its best",
}
"""A way's key in the result -> what people are shown."""

DEFAULTS = (
    "batch.global=32",
    "data.crop_size=64",
    "optimizer.learning_rate=1e-3",
    "exchange_precision=bf16",
)
"""Settings of the two ranks: D with all of its parameters, small images, so that traffic counts."""

NUM_WARM = 2
_FIRST_PORT = 29_500
_LINES_OF_ERROR = 12


def measure_exchange(
    rate: str,
    num_steps: int,
    names: Sequence[str],
    overrides: Sequence[str],
    num_rounds: int = 1,
) -> dict[str, Any]:
    """Runs ways to exchange gradients on two hosts of one rank each.

    Args:
        rate: of the cable both ways, such as 1gbit; none: no limit.
        num_steps: timed ones, after two that are not.
        names: keys of `NAMES`.
        overrides: of `DEFAULTS`, `section.key=value`.
        num_rounds: how often each starts anew, in turn, since a machine that others use is now
            faster and now slower.

    Returns:
        For each name `megabytes_per_step` (10^6 bytes that a rank sends, frames and all; mean of
        both), `seconds_per_step` (median of the rounds), `seconds_of_rounds` (median of the steps
        of each), `exposed_seconds` (median of the pairs of a step and the same step without
        exchange: by how much the exchange makes it longer), `loss` (of the last step, mean over
        ranks) and `peak_memory_megabytes` (of a rank); also `setting`, what was measured.

    Raises:
        VggdistError: no root, an unknown name, or a rank that failed.
    """
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise VggdistError(f"--only names {', '.join(unknown)}; there are {', '.join(NAMES)}.")
    settings = _settings(overrides)
    config = load_config(None, settings)
    _check(config)
    ports = itertools.count(_FIRST_PORT)
    with Hosts(rate) as hosts:

        def run(name: str) -> list[dict[str, Any]]:
            return _run(hosts, next(ports), [name, str(num_steps), str(NUM_WARM), *settings])

        ways = {NAMES[name]: partial(run, name) for name in names}
        rounds = take_turns(ways, num_rounds, StatusLine())
    result: dict[str, Any] = {
        "setting": {
            "configuration": config.model.configuration,
            "crop_size": config.data.crop_size,
            "images_per_rank": config.batch.global_ // 2,
            "precision": config.resolved_precision,
            "exchange": config.exchange,
            "exchange_precision": config.sent_precision,
            "rate": rate,
            "steps": num_steps,
            "rounds": num_rounds,
        }
    }
    for name in names:
        answers = rounds[NAMES[name]]
        of_ranks = [answer for ranks in answers for answer in ranks]
        # Of the first rank in each round; both wait for each other in every step.
        seconds = [statistics.median(first["seconds"]) for first, _ in answers]
        exposed = [
            exchanging - max(alone)
            for first, second in answers
            for exchanging, *alone in zip(
                first["exchanging"], first["alone"], second["alone"], strict=True
            )
        ]
        result[name] = {
            "megabytes_per_step": statistics.mean(a["bytes"] for a in of_ranks) / num_steps / 1e6,
            "seconds_per_step": statistics.median(seconds),
            "seconds_of_rounds": seconds,
            "exposed_seconds": statistics.median(exposed),
            "loss": of_ranks[-1]["loss"],
            "peak_memory_megabytes": max(a["peak_memory"] for a in of_ranks) / 1e6,
        }
    return result


def render_exchange(result: Mapping[str, Any]) -> str:
    """The table of `measure_exchange`."""
    setting, ours = result["setting"], result.get("ours")
    rows = []
    for name, label in NAMES.items():
        if name not in result:
            continue
        own = result[name]
        pairs = ratios(own["seconds_of_rounds"], ours["seconds_of_rounds"]) if ours else []
        rows.append(
            (
                label,
                f"{own['megabytes_per_step']:.2f}",
                f"{own['seconds_per_step']:.3f}",
                f"{own['exposed_seconds']:.3f}",
                f"{statistics.median(pairs):.2f}" if pairs else "",
                f"{own['loss']:.4f}",
                f"{own['peak_memory_megabytes']:.0f}",
                f"{min(pairs):.2f} to {max(pairs):.2f} x ours" if len(pairs) > 1 else "",
            )
        )
    title = (
        f"configuration {configuration_name(setting['configuration'])}, "
        f"{setting['images_per_rank']} images of {setting['crop_size']} px per rank, "
        f"{setting['precision']}, 2 ranks, cable {setting['rate']}, "
        f"median of {setting['steps']} steps"
        + (f" in each of {setting['rounds']} rounds" if setting["rounds"] > 1 else "")
    )
    head = ("exchange", "MB/step", "s/step", "exposed", "x ours", "loss", "peak MB", "")
    return f"{title}\n{render_table(head, rows)}"


def _settings(overrides: Sequence[str]) -> list[str]:
    """All settings of the ranks, in one precision for all ways."""
    settings = [*DEFAULTS, *overrides]
    if load_config(None, settings).precision != "auto":
        return settings
    precision, why = choose_precision("auto", torch.device("cpu"))
    StatusLine().note(why)
    return [*settings, f"precision={precision}"]


def _check(config: Config) -> None:
    split = split_batch(config.batch, world_size=2)
    if split.accumulation_steps > 1:
        raise ConfigError(
            f"batch.global is {config.batch.global_} and a rank's micro batch {split.micro}, so "
            f"gradients would be accumulated, which is not compared here; set batch.global to at "
            f"most {2 * split.micro}."
        )


def _run(hosts: Hosts, port: int, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """What two ranks of `exchange_baselines.py` tell, one on each host.

    Raises:
        VggdistError: a rank has failed.
    """
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": hosts.address,
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": hosts.interface,
    }
    command = [sys.executable, "-m", "vggdist.profiling.exchange_baselines", *arguments]
    answers = []
    with ExitStack() as stack:
        ranks = []
        for rank in (0, 1):
            errors = stack.enter_context(tempfile.TemporaryFile("w+"))
            process = subprocess.Popen(
                hosts.command(rank, command),
                env=os.environ | shared | {"RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
            stack.enter_context(process)  # waits for its end
            stack.callback(process.kill)
            ranks.append((process, errors))
        for process, errors in ranks:
            answer, _ = process.communicate()
            if process.returncode:
                errors.seek(0)
                last = errors.read().strip().splitlines()[-_LINES_OF_ERROR:]
                raise VggdistError(
                    f"a rank ended with code {process.returncode}; its last words: "
                    + "\n".join(last)
                )
            answers.append(json.loads(answer))
    return answers
