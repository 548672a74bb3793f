"""Weights files of others, read as named tensors and nothing else: what is in them never runs."""

from __future__ import annotations

import pickle
import re
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vggdist.errors import WeightsError
from vggdist.paths import quote

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
_INNER = ("state_dict", "model_state_dict", "model")  # where a training's file has its weights
_PREFIXES = ("module.", "_orig_mod.", "model.")  # of wrappers: data parallel, compiled, Lightning


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .pth, .pt, .bin, .safetensors or .npz file by their names, on the CPU.

    A state dict that lies within another dictionary is found, and the prefix of a wrapper such as
    DataParallel is taken off the names. What is no tensor is left out.

    Raises:
        WeightsError: there is no such file, it is damaged, its kind is unknown, it holds objects
            that only running their code would bring back, or it holds no tensors.
    """
    if not path.is_file():
        raise WeightsError(
            f"{quote(path)} is no file; give a .pth, .pt, .safetensors or .npz file."
        )
    if path.suffix in TORCH_SUFFIXES:
        tensors = _from_torch(path)
    elif path.suffix == ".npz":
        tensors = _from_numpy(path)
    elif path.suffix == ".safetensors":
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise _damaged(path, error) from error
    else:
        raise WeightsError(
            f"{quote(path)} ends in {path.suffix or 'nothing'}; files that can be read end in "
            f"{', '.join(TORCH_SUFFIXES)}, .safetensors or .npz."
        )
    if not tensors:
        raise WeightsError(
            f"{quote(path)} holds no tensors with names, so there are no weights in it."
        )
    return _without_prefix(tensors)


def _from_torch(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it warns of is an error here, or is none
            values = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _holds_objects(path, str(error)) from error
    except Exception as error:  # of bytes that are no pickle, torch raises anything
        raise _damaged(path, error) from error
    for name in _INNER:
        if isinstance(values, Mapping) and isinstance(values.get(name), Mapping):
            values = values[name]
    if not isinstance(values, Mapping):
        return {}
    return {str(name): value for name, value in values.items() if isinstance(value, Tensor)}


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
    except (OSError, EOFError, KeyError, TypeError, MemoryError, BadZipFile, zlib.error) as error:
        raise _damaged(path, error) from error
    return tensors


def _without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES * 2:  # one wrapper may be in another
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
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
        f"{quote(path)} cannot be read: it is cut off or damaged, or not what {path.suffix} says "
        f"({type(error).__name__}: {reason}). Fetch it again."
    )
