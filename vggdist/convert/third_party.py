"""Weights files of others, read as named tensors and nothing else: what is in them never runs."""

from __future__ import annotations

import fnmatch
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vggdist.artifacts.files import ARCHIVE_ERRORS
from vggdist.artifacts.formats import WeightsFormat, find_format
from vggdist.artifacts.paths import quote
from vggdist.convert.layouts import split_name
from vggdist.errors import WeightsError

_WRAPPERS = ("module", "_orig_mod")  # data parallel, compiled; of a network or of a part of it
_NO_WEIGHTS = re.compile(r"optim|sched|scaler", re.IGNORECASE)  # of a training's file
_COUNTERS = ("total_ops", "total_params")  # which the profiler thop leaves in every layer


def read_tensors(
    path: Path, key: str | None = None, ignore: Sequence[str] = ()
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of a network in a file of torch.save, a .safetensors or an .npz file.

    The network may lie within dictionaries, and its names may have prefixes. What is no tensor is
    left out, and so are tensors beside the network, such as those of a loss.

    Args:
        path: the file; its first bytes say what it is.
        key: where in the file the network is; none: where the only one is.
        ignore: patterns of names (`aux.*`) of tensors that do not count.

    Returns:
        The tensors, on the CPU, by the names that they have within the network; and the names, in
        the file, of those that are not the network's.

    Raises:
        WeightsError: there is no such file, it is damaged, its kind is unknown, it holds objects
            that only running their code would bring back, or it holds no tensors, or several
            networks of which none is named.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in _flatten(_read(path, find_format(path))):
        if name in tensors:
            raise WeightsError(
                f"{quote(path)} holds {name} twice, with {' or '.join(_WRAPPERS)} before it or in "
                "it and without. Have whoever made it save one network alone."
            )
        tensors[name] = tensor
    if not tensors:
        raise WeightsError(
            f"{quote(path)} holds no tensors with names, so there are no weights in it."
        )
    left_out = [name for name in tensors if _is_ignored(name, ignore)]
    tensors = {name: tensor for name, tensor in tensors.items() if name not in left_out}
    place = _choose(path, _places(tensors), key)
    inside = {
        name.removeprefix(place): tensor
        for name, tensor in tensors.items()
        if name.startswith(place)
    }
    left_out += [name for name in tensors if not name.startswith(place)]
    return inside, tuple(left_out)


def _read(path: Path, weights_format: WeightsFormat) -> object:
    match weights_format:
        case "torch":
            return _from_torch(path)
        case "numpy":
            return _from_numpy(path)
        case "safetensors":
            try:
                return load_file(path)
            except (OSError, SafetensorError) as error:
                raise _damaged(path, error) from error


def _flatten(values: object, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """All named tensors in mappings of mappings, without the names of wrappers."""
    if not isinstance(values, Mapping):
        return
    for key, value in values.items():
        if not isinstance(key, str) or (isinstance(value, Mapping) and _NO_WEIGHTS.search(key)):
            continue
        name = ".".join(part for part in f"{prefix}{key}".split(".") if part not in _WRAPPERS)
        if isinstance(value, Tensor):
            yield name, value
        else:
            yield from _flatten(value, f"{name}." if name else "")


def _is_ignored(name: str, patterns: Sequence[str]) -> bool:
    _, rest = split_name(name) or ("", name)
    return name.rpartition(".")[2] in _COUNTERS or any(
        fnmatch.fnmatchcase(text, pattern) for pattern in patterns for text in (name, rest)
    )


def _places(tensors: Mapping[str, Tensor]) -> list[str]:
    """Where networks are, as the beginnings of their names: wherever there is a kernel."""
    found = {}
    for name, tensor in tensors.items():
        if tensor.dim() == 4 and (parts := split_name(name)):
            found[parts[0]] = True
    return list(found)


def _choose(path: Path, places: Sequence[str], key: str | None) -> str:
    fitting = [
        place for place in places if key is None or f"{place}.".startswith(f"{key.rstrip('.')}.")
    ]
    if len(fitting) == 1:
        return fitting[0]
    named = ", ".join(quote(place.rstrip(".")) for place in places if place)
    named = named or ("one without a name" if places else "none that is known here")
    if len(places) > 1:
        raise WeightsError(
            f"{quote(path)} holds several networks: {named}. Name one of them with --key."
        )
    if key is not None:
        raise WeightsError(
            f"{quote(path)} holds no network at --key {quote(key)}; it has {named}. Leave out "
            "--key, or name that."
        )
    return ""  # of an unknown layout: the caller says which names there are


def _from_torch(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it warns of is an error here, or is none
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _holds_objects(path, str(error)) from error
    except Exception as error:  # of bytes that are no pickle, torch raises anything
        raise _damaged(path, error) from error


def _from_numpy(path: Path) -> dict[str, Tensor]:
    tensors = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                array = file[name]
                if array.dtype.kind in "fiu":
                    tensors[name] = torch.from_numpy(np.asarray(array, dtype=np.float32))
    except ValueError as error:
        if "pickle" not in str(error):
            raise _damaged(path, error) from error
        raise _holds_objects(path, "") from error
    except ARCHIVE_ERRORS as error:
        raise _damaged(path, error) from error
    return tensors


def _holds_objects(path: Path, message: str) -> WeightsError:
    found = re.search(r"GLOBAL ([\w.]+)", message)
    what = f" ({found[1]})" if found else ""
    return WeightsError(
        f"{quote(path)} holds Python objects{what}, not only tensors. Bringing them back could run "
        "any code, so they stay in the file. Have whoever made it save the tensors alone: "
        "safetensors.torch.save_file(model.state_dict(), FILE), or torch.save(model.state_dict(), "
        "FILE)."
    )


def _damaged(path: Path, error: Exception) -> WeightsError:
    """For people: torch's messages go on for paragraphs about options that nobody here has."""
    reason = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
    return WeightsError(
        f"{quote(path)} cannot be read: it is cut off or damaged ({type(error).__name__}: "
        f"{reason}). Fetch it again."
    )
