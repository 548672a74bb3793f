"""The oracle is SplitMix64 in Python's unbounded integers, finalizer complete."""

import pytest
import torch
from torch import Tensor

from vggdist.layers.dropout import LAYER_DISTANCE, KeyedDropout

MASK = 2**64 - 1


def splitmix64(state: int) -> int:
    """The finalizer, as in Steele, Lea & Flood (2014) and Java's SplittableRandom."""
    z = state & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def kept(key: int, layer: int, unit: int, ratio: float) -> bool:
    number = splitmix64(key + layer * LAYER_DISTANCE + unit * 0x9E3779B97F4A7C15)
    return (number ^ 2**63) / 2**64 >= ratio  # ^ 2^63: compared as signed numbers


def random_keys(num_keys: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**63), 2**63 - 1, (num_keys,), generator=generator)


def mask(keys: Tensor, width: int = 4096, ratio: float = 0.5, layer: int = 6) -> Tensor:
    return KeyedDropout(ratio, layer)(torch.ones(len(keys), width), keys) != 0


def test_the_oracle_gives_splitmix64s_published_first_numbers() -> None:
    """Seed 1234567, as in the reference implementation's test vectors (Rosetta Code)."""
    states = [1234567 + n * 0x9E3779B97F4A7C15 for n in (1, 2, 3)]
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [splitmix64(state) for state in states] == expected


@pytest.mark.parametrize("ratio", [0.5, 0.1, 0.9])
@pytest.mark.parametrize("layer", [6, 7])
def test_a_unit_is_kept_exactly_when_splitmix64_says_so(ratio: float, layer: int) -> None:
    keys = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), 0x123456789ABCDEF])
    expected = [[kept(int(key), layer, unit, ratio) for unit in range(300)] for key in keys]
    assert mask(keys, 300, ratio, layer).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kept_units_grow_by_one_over_the_share_kept_and_keep_their_type(dtype: torch.dtype) -> None:
    x = torch.randn(4, 64).to(dtype)
    y = KeyedDropout(0.75, 6)(x, random_keys(4))
    assert y.dtype == dtype
    assert torch.equal(y[y != 0], (4 * x)[y != 0])


@pytest.mark.parametrize("ratio", [0.5, 0.2])
def test_the_share_of_dropped_units_is_the_ratio(ratio: float) -> None:
    share = 1 - mask(random_keys(64), ratio=ratio).float().mean().item()
    deviation = (ratio * (1 - ratio) / (64 * 4096)) ** 0.5
    assert abs(share - ratio) < 4 * deviation


def test_masks_of_two_layers_two_images_and_neighbouring_units_are_independent() -> None:
    """For independent fair masks the share of equal entries is 1/2, 4 deviations wide."""
    keys = random_keys(64)
    first = mask(keys)
    neighbouring_keys = mask(torch.arange(64))
    pairs = {
        "layers": (first, mask(keys, layer=7)),
        "images": (first[:-1], first[1:]),
        "units": (first[:, :-1], first[:, 1:]),
        "neighbouring keys": (neighbouring_keys[:-1], neighbouring_keys[1:]),
    }
    for name, (a, b) in pairs.items():
        equal = (a == b).float().mean().item()
        assert abs(equal - 0.5) < 4 * 0.5 / a.numel() ** 0.5, name


def test_no_layers_mask_is_another_layers_mask_shifted() -> None:
    """The counters of two layers are more than 2^40 increments apart, either way."""
    inverse = pow(0x9E3779B97F4A7C15, -1, 2**64)
    for difference in range(1, 9):
        steps = difference * LAYER_DISTANCE * inverse % 2**64
        assert min(steps, 2**64 - steps) > 2**40


def test_the_batch_may_be_split_and_ordered_in_any_way() -> None:
    keys, dropout = random_keys(12), KeyedDropout(0.5, 6)
    x = torch.randn(12, 100)
    whole = dropout(x, keys)
    parts = [dropout(x[i:j], keys[i:j]) for i, j in ((0, 5), (5, 6), (6, 12))]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(whole.flip(0), dropout(x.flip(0), keys.flip(0)))


def test_the_gradient_passes_kept_units_alone() -> None:
    x = torch.randn(4, 50, requires_grad=True)
    keys = random_keys(4)
    (gradient,) = torch.autograd.grad(KeyedDropout(0.5, 6)(x, keys).sum(), x)
    assert torch.equal(gradient, 2.0 * mask(keys, 50))


def test_it_is_the_identity_in_eval_mode_and_at_ratio_zero() -> None:
    x, keys = torch.randn(4, 50), random_keys(4)
    assert torch.equal(KeyedDropout(0.5, 6).eval()(x, keys), x)
    assert torch.equal(KeyedDropout(0.0, 6)(x, keys), x)


def test_without_keys_it_is_torchs_dropout() -> None:
    x = torch.randn(4, 50)
    torch.manual_seed(3)
    ours = KeyedDropout(0.5, 6)(x)
    torch.manual_seed(3)
    assert torch.equal(ours, torch.nn.functional.dropout(x, 0.5))
