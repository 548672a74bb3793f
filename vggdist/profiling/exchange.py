"""What exchanging gradients costs: our way beside DDP's and DeepSpeed's, over a slow cable.

Two hosts on this machine (`benchmark/hosts.py`) with one rank each run one contender after the
other (`benchmark/contenders.py`).
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vggdist.config import Config, split_batch
from vggdist.config_file import load_config
from vggdist.errors import ConfigError, VggdistError
from vggdist.profiling.hosts import Hosts
from vggdist.terminal import StatusLine

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
"""A contender's key in the result -> what people are shown."""

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
    """Runs contenders on two hosts of one rank each.

    Args:
        rate: of the cable both ways, such as 1gbit; none: no limit.
        num_steps: timed ones, after two that are not.
        names: keys of `NAMES`.
        overrides: of `DEFAULTS`, `section.key=value`.
        num_rounds: how often each starts anew, one after the other, since a machine that others
            use is now faster and now slower.

    Returns:
        For each name `megabytes_per_step` (10^6 bytes that a rank sends, frames and all; mean of
        both), `seconds_per_step` (median of the rounds), `seconds_of_rounds` (median of the steps
        of each), `loss` (of the last step, mean over ranks) and `peak_memory_megabytes` (of a
        rank); also `setting`, what was measured.

    Raises:
        VggdistError: no root, an unknown name, or a rank that failed.
    """
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise VggdistError(f"--only names {', '.join(unknown)}; there are {', '.join(NAMES)}.")
    settings = _settings(overrides)
    config = load_config(None, settings)
    _check(config)
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    progress = _Progress(len(answers) * num_rounds, NUM_WARM + num_steps)
    port = itertools.count(_FIRST_PORT)
    with Hosts(rate) as hosts:
        for name in [*answers] * num_rounds:
            command = [
                *[sys.executable, "-m", "vggdist.profiling.exchange_baselines", name],
                *[str(num_steps), str(NUM_WARM), *settings],
            ]
            answers[name] += _run(hosts, next(port), command, NAMES[name], progress)
    result: dict[str, Any] = {"setting": _setting(rate, num_steps, num_rounds, config)}
    for name, of_ranks in answers.items():
        # Of the first rank in each round; both wait for each other in every step.
        seconds = [statistics.median(answer["seconds"]) for answer in of_ranks[::2]]
        result[name] = {
            "megabytes_per_step": statistics.mean(a["bytes"] for a in of_ranks) / num_steps / 1e6,
            "seconds_per_step": statistics.median(seconds),
            "seconds_of_rounds": seconds,
            "loss": of_ranks[-1]["loss"],
            "peak_memory_megabytes": max(a["peak_memory"] for a in of_ranks) / 1e6,
        }
    progress.clear()
    return result


def render_exchange(result: Mapping[str, Any]) -> str:
    """The table of `measure_exchange`."""
    setting = result["setting"]
    ours = result.get("ours")
    rows = [
        f"configuration {setting['configuration']}, {setting['images_per_rank']} images of "
        f"{setting['crop_size']} px per rank, {setting['precision']}, 2 ranks, "
        f"cable {setting['rate']}, median of {setting['steps']} steps"
        + (f" in each of {setting['rounds']} rounds" if setting["rounds"] > 1 else ""),
        f"{'exchange':<26}{'MB/step':>10}{'s/step':>10}{'x ours':>8}{'loss':>9}{'peak MB':>10}",
    ]
    for name, label in NAMES.items():
        if name in result:
            one = result[name]
            ratios = _ratios(one, ours) if ours else []
            ratio = f"{statistics.median(ratios):.2f}" if ratios else ""
            spread = f"  {min(ratios):.2f} to {max(ratios):.2f} x ours" if len(ratios) > 1 else ""
            rows.append(
                f"{label:<26}{one['megabytes_per_step']:>10.2f}{one['seconds_per_step']:>10.3f}"
                f"{ratio:>8}{one['loss']:>9.4f}{one['peak_memory_megabytes']:>10.0f}{spread}"
            )
    return "\n".join(rows)


def _ratios(one: Mapping[str, Any], ours: Mapping[str, Any]) -> list[float]:
    """How many times as long as ours it took, round by round."""
    pairs = zip(one["seconds_of_rounds"], ours["seconds_of_rounds"], strict=True)
    return [seconds / own for seconds, own in pairs]


def _settings(overrides: Sequence[str]) -> list[str]:
    """All settings of the ranks, in one precision for all ways."""
    settings = [*DEFAULTS, *overrides]
    if load_config(None, settings).precision != "auto":
        return settings
    import torch  # here, since the command's help must not wait for it

    from vggdist.distributed.precision import choose_precision

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


def _setting(rate: str, num_steps: int, num_rounds: int, config: Config) -> dict[str, Any]:
    return {
        "configuration": config.model.configuration,
        "crop_size": config.data.crop_size,
        "images_per_rank": config.batch.global_ // 2,
        "precision": config.resolved_precision,
        "exchange": config.exchange,
        "exchange_precision": config.travel_precision,
        "rate": rate,
        "steps": num_steps,
        "rounds": num_rounds,
    }


def _run(
    hosts: Hosts, port: int, command: Sequence[str], label: str, progress: _Progress
) -> list[dict[str, Any]]:
    """The last line of each rank of a contender."""
    progress.show(label, 0)
    ranks: list[_Rank] = []
    last: list[dict[str, Any]] = [{}, {}]
    try:
        for number in (0, 1):
            ranks.append(_Rank(hosts, number, port, command))
        for number, rank in enumerate(ranks):
            for last[number] in rank.lines():
                if number == 0 and "step" in last[0]:
                    progress.show(label, last[0]["step"])
    finally:
        for started in ranks:
            started.end()
    return last


class _Rank:
    """A process on one of the hosts that tells how it goes in lines of JSON."""

    def __init__(self, hosts: Hosts, rank: int, port: int, command: Sequence[str]) -> None:
        environment = {
            "RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": hosts.address,
            "MASTER_PORT": str(port),
            "GLOO_SOCKET_IFNAME": hosts.interface,
        }
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed with the process
        self._process = subprocess.Popen(
            hosts.command(rank, command),
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def lines(self) -> Iterator[dict[str, Any]]:
        """What it tells, as it tells it.

        Raises:
            VggdistError: it has failed.
        """
        assert self._process.stdout is not None
        for line in self._process.stdout:
            yield json.loads(line)
        if self._process.wait():
            self._errors.seek(0)
            last = self._errors.read().strip().splitlines()[-_LINES_OF_ERROR:]
            raise VggdistError(
                f"a rank ended with code {self._process.returncode}; its last words: "
                + "\n".join(last)
            )

    def end(self) -> None:
        """Ends it, if it has not ended by itself."""
        self._process.kill()
        self._process.wait()
        self._errors.close()


class _Progress:
    """Which contender is at which step, and how long the others will take at this pace."""

    def __init__(self, num_contenders: int, num_steps: int) -> None:
        self._line = StatusLine()
        self._num_steps, self._total = num_steps, num_contenders * num_steps
        self._done, self._began_at = 0, time.monotonic()

    def show(self, label: str, number: int) -> None:
        """Step `number` of a contender is done; 0: it starts."""
        self._done += number > 0
        text = f"{label}: step {number} of {self._num_steps}"
        if self._done:
            elapsed = time.monotonic() - self._began_at
            left = elapsed / self._done * (self._total - self._done)
            text += f"; about {left / 60:.1f} min left of all"
        self._line.show(text)

    def clear(self) -> None:
        self._line.clear()
