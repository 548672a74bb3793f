"""What a message costs on the way: rings inside a node and between nodes.

A transfer takes its bytes divided by the rate, and a latency for each step of its ring. How many
bytes are sent is counted by `distributed/traffic.py`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from vggdist.distributed import traffic
from vggdist.distributed.traffic import PIECE_ELEMENTS
from vggdist.errors import ConfigError
from vggdist.planning.devices import Device

Link = Literal["bus", "network"]

PAYLOAD_SHARE = 0.93
"""Of a link's bits, those that are data. Ethernet spends 38 bytes on each frame; RoCE v2 with a
path MTU of 1,024 bytes another 44 on headers (1024 / 1106), TCP with frames of 1,500 bytes 52
(1448 / 1538)."""

LAUNCH_SECONDS = 8.4e-6
"""Start of a collective: NCCL's base latency of a ring (src/graph/tuning.cc)."""

TREE_HOPS, TREE_RATE = 2, 0.92
"""Of NCCL's trees: a level takes as long as two steps of a ring, the data 92 % of its rate (same
source). NCCL has had them since 2.4, after the published results."""

_RATE = re.compile(r"(\d+(?:\.\d+)?)(kbit|mbit|gbit)")
_UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


def parse_rate(text: str) -> float:
    """`25gbit` -> 25e9, bits per second, in the units of Linux's `tc`.

    Raises:
        ConfigError: not a positive number with one of the units.
    """
    match = _RATE.fullmatch(text.strip().lower())
    if match is None or float(match[1]) == 0.0:
        raise ConfigError(
            f"{text!r} is not the rate of a link; write a number and kbit, mbit or gbit, such as "
            "25gbit for a node's link to the others."
        )
    return float(match[1]) * _UNITS[match[2]]


@dataclass(frozen=True)
class Leg:
    """A part of a message's way: for so many seconds it has this link for itself."""

    link: Link
    seconds: float


@dataclass(frozen=True)
class Cluster:
    """Ranks and the links between them; every node has the same number of ranks.

    Attributes:
        bits_per_second: of a node's link to the others, all its adapters together.
    """

    nodes: int
    ranks_per_node: int
    device: Device
    bits_per_second: float

    @property
    def world_size(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def slowness(self) -> float:
        """By which factor the slowest rank's step is longer than the mean (Blom 1958)."""
        count = self.world_size
        largest = NormalDist().inv_cdf((count - 0.375) / (count + 0.25))
        return 1.0 + self.device.step_spread * largest

    def of_world(self, world_size: int) -> Cluster:
        """The same machines with so many ranks: as few nodes as can share them equally."""
        most = min(world_size, self.ranks_per_node)
        ranks = max(number for number in range(1, most + 1) if world_size % number == 0)
        return Cluster(world_size // ranks, ranks, self.device, self.bits_per_second)

    def ring_all_reduce(self, num_elements: int, element_bytes: int) -> tuple[Leg, ...]:
        """One ring over all ranks that enters and leaves each node once."""
        if self.world_size == 1:
            return ()
        sent = traffic.all_reduce_bytes(num_elements, self.world_size, element_bytes)
        hops = 2 * (self.nodes - 1)
        latency = self._latency(hops, 2 * (self.world_size - 1) - hops)
        rate = self._bus if self.nodes == 1 else min(self._bus, self._network)
        return (Leg("bus" if self.nodes == 1 else "network", latency + sent / rate),)

    def node_all_reduce(self, num_elements: int, element_bytes: int) -> tuple[Leg, ...]:
        """Inside of the nodes first, piece by piece: parts to the ranks, summed between nodes."""
        if self.nodes == 1:
            return self.ring_all_reduce(num_elements, element_bytes)
        if self.ranks_per_node == 1:
            return (self._between(num_elements, element_bytes),)
        most = PIECE_ELEMENTS["cpu" if self.device.cores_compute else "cuda"]
        whole, rest = divmod(num_elements, most)
        pieces = [most] * whole + [rest] * (rest > 0)
        return tuple(leg for piece in pieces for leg in self._piece(piece, element_bytes))

    def _piece(self, num_elements: int, element_bytes: int) -> tuple[Leg, ...]:
        half = traffic.all_reduce_bytes(num_elements, self.ranks_per_node, element_bytes) / 2
        inside = Leg("bus", self._latency(0, self.ranks_per_node - 1) + half / self._bus)
        return inside, self._between(num_elements, element_bytes), inside

    def _between(self, num_elements: int, element_bytes: int) -> Leg:
        """A sum over nodes in a ring or, with many nodes and little data, in a tree, as NCCL's."""
        sent = traffic.all_reduce_bytes_between_nodes(
            num_elements, self.nodes, self.ranks_per_node, element_bytes
        )
        ring = self._latency(2 * (self.nodes - 1), 0) + sent / self._network
        levels = 2 * math.log2(self.nodes)
        tree = self._latency(TREE_HOPS * levels, 0) + sent / (TREE_RATE * self._network)
        return Leg("network", min(ring, tree))

    def gather_factors(
        self, matrix: tuple[int, int], images_per_rank: int, element_bytes: int
    ) -> tuple[Leg, ...]:
        """Factors of all ranks to all ranks: once to each other node, then inside of the nodes."""
        legs = []
        if self.nodes > 1:
            sent = traffic.factor_bytes_between_nodes(
                *matrix, images_per_rank, self.nodes, self.ranks_per_node, element_bytes
            )
            legs.append(Leg("network", self._latency(self.nodes - 1, 0) + sent / self._network))
        if self.ranks_per_node > 1:
            of_nodes = images_per_rank * self.nodes
            sent = traffic.factor_bytes(*matrix, of_nodes, self.ranks_per_node, element_bytes)
            legs.append(Leg("bus", self._latency(0, self.ranks_per_node - 1) + sent / self._bus))
        return tuple(legs)

    @property
    def _network(self) -> float:
        return PAYLOAD_SHARE * self.bits_per_second / 8

    @property
    def _bus(self) -> float:
        return self.device.bus_gigabytes_per_second * 1e9

    def _latency(self, network_hops: float, bus_hops: float) -> float:
        device = self.device
        microseconds = (
            network_hops * device.network_latency_microseconds
            + bus_hops * device.bus_latency_microseconds
        )
        return LAUNCH_SECONDS + microseconds * 1e-6
