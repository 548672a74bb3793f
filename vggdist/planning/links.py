"""What a message costs on the way: inside a node and between nodes.

A transfer takes its bytes divided by the rate, and a latency for each of its steps. How many bytes
are sent is counted by `distributed/traffic.py`.

On GPUs NCCL sends, and takes the time of its own model (src/graph/tuning.cc of 2.20): that of a
ring over all ranks or, for sums, of its trees, whichever is sooner. It opens a ring for each
adapter of a node, with a part of the tensor, so that the node's whole rate carries what one ring
would carry. Its protocol is Simple, that of large messages; the others, which have less latency for
small ones, are left out, as are its corrections for sizes between. On CPUs gloo sends, in the steps
of `distributed/collectives.py`.
"""

from __future__ import annotations

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

TREE_LATENCY_MICROSECONDS, TREE_RATE = 28.0, 0.92
"""Of NCCL's trees: of a step inside a node or between nodes, and the share of a ring's rate (same
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

    def all_reduce(self, num_elements: int, element_bytes: int) -> tuple[Leg, ...]:
        """The sum over all ranks that a training makes."""
        if self._is_node_aware:
            whole, rest = divmod(num_elements, PIECE_ELEMENTS)
            pieces = [PIECE_ELEMENTS] * whole + [rest] * (rest > 0)
            return tuple(leg for piece in pieces for leg in self._sum_piece(piece, element_bytes))
        ring = self.ring_all_reduce(num_elements, element_bytes)
        if self.world_size == 1 or self.device.cores_compute:
            return ring
        return min(ring, self._tree(num_elements, element_bytes), key=lambda legs: legs[0].seconds)

    def ring_all_reduce(self, num_elements: int, element_bytes: int) -> tuple[Leg, ...]:
        """The same by rings alone, as behind the published results."""
        sent = traffic.all_reduce_bytes(num_elements, self.world_size, element_bytes)
        return self._ring(sent, rounds=2)

    def gather_factors(
        self, matrix: tuple[int, int], images_per_rank: int, element_bytes: int
    ) -> tuple[Leg, ...]:
        """Factors of all ranks to all ranks."""
        if not self._is_node_aware:
            sent = traffic.factor_bytes(*matrix, images_per_rank, self.world_size, element_bytes)
            return self._ring(sent, rounds=1)
        sent = traffic.factor_bytes_between_nodes(
            *matrix, images_per_rank, self.nodes, self.ranks_per_node, element_bytes
        )
        between = Leg("network", self._latency(self.nodes - 1, 0) + sent / self._network)
        of_nodes = images_per_rank * self.nodes
        sent = traffic.factor_bytes(*matrix, of_nodes, self.ranks_per_node, element_bytes)
        inside = Leg("bus", self._latency(0, self.ranks_per_node - 1) + sent / self._bus)
        return between, inside

    @property
    def _is_node_aware(self) -> bool:
        """Whether `distributed/collectives.py` goes over nodes in steps of its own."""
        return self.device.cores_compute and self.nodes > 1 and self.ranks_per_node > 1

    def _ring(self, sent: float, rounds: int) -> tuple[Leg, ...]:
        """Over all ranks, entering and leaving each node once; `sent` bytes pass every link."""
        if self.world_size == 1:
            return ()
        hops = rounds * (self.nodes - 1)
        latency = self._latency(hops, rounds * (self.world_size - 1) - hops)
        if self.nodes == 1:
            return (Leg("bus", latency + sent / self._bus),)
        return (Leg("network", latency + sent / min(self._bus, self._network)),)

    def _tree(self, num_elements: int, element_bytes: int) -> tuple[Leg, ...]:
        """A chain in each node and two trees over the nodes, up and down, for half a tensor each.

        Of two nodes each sends the tensor once; of more, those that have two children in one tree
        and none in the other send it twice, as all ranks of a chain do.
        """
        size = num_elements * element_bytes
        steps = 2 * (self.ranks_per_node - 1 + self.nodes.bit_length() - 1)
        latency = LAUNCH_SECONDS + steps * TREE_LATENCY_MICROSECONDS * 1e-6
        seconds = max(2 * size / self._bus, min(self.nodes - 1, 2) * size / self._network)
        return (Leg("bus" if self.nodes == 1 else "network", latency + seconds / TREE_RATE),)

    def _sum_piece(self, num_elements: int, element_bytes: int) -> tuple[Leg, ...]:
        """Parts to the ranks of the node, which sum them, then over the nodes, and back."""
        half = traffic.all_reduce_bytes(num_elements, self.ranks_per_node, element_bytes) / 2
        inside = Leg("bus", self._latency(0, self.ranks_per_node - 1) + half / self._bus)
        sent = traffic.all_reduce_bytes_between_nodes(
            num_elements, self.nodes, self.ranks_per_node, element_bytes
        )
        latency = self._latency(2 * (self.nodes - 1), 0)
        return inside, Leg("network", latency + sent / self._network), inside

    @property
    def _network(self) -> float:
        return PAYLOAD_SHARE * self.bits_per_second / 8

    @property
    def _bus(self) -> float:
        return self.device.bus_gigabytes_per_second * 1e9

    def _latency(self, network_hops: int, bus_hops: int) -> float:
        device = self.device
        microseconds = (
            network_hops * device.network_latency_microseconds
            + bus_hops * device.bus_latency_microseconds
        )
        return LAUNCH_SECONDS + microseconds * 1e-6
