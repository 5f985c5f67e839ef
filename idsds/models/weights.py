"""Reading and writing weights. Nothing in a checkpoint file is ever executed."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from idsds.common.files import atomic, sha256_of
from idsds.models.base import describe


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or does not fit the model; the message names the file and the first differences."""


def load_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Load weights strictly, onto the device of the model.

    Args:
        path: our own ``.safetensors``; a state_dict written by ``torch.save``; or a dict that holds one under ``state_dict``, such as the
            ``.pth.tar`` of the study's training script with its epoch, accuracy, optimiser, schedule and ``argparse.Namespace``. Prefixes
            of DataParallel (``module.``) and of the study's B-cos wrapper (``model.``) are removed.

    Raises:
        CheckpointError: if the file is missing, unreadable, truncated or holds more than tensors and plain values, or if keys are missing
            or unexpected or shapes are wrong. The model is left unchanged.
    """
    model.load_state_dict(check_checkpoint(model, path))
    return model


def check_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the weights of a file under the model's own keys. The model, which may be on the meta device, is left unchanged.

    Raises:
        CheckpointError: see :func:`load_checkpoint`.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {str(path)!r}")
    check_content(path)
    state = rename_keys(model, read_state_dict(path))
    if "@" in describe(model).name:
        from idsds.models.libraries import at_size

        state = at_size(model, state)
    _check_fit(model, state, path)
    return state


def save_checkpoint(model: nn.Module | Mapping[str, Tensor], path: str | os.PathLike[str]) -> Path:
    """Write the weights of a model, or a state_dict, as safetensors.

    The file appears under its name only when complete, so no reader ever sees half of it, even if the process is killed.

    Args:
        model: a net or its state_dict, on any device.

    Returns:
        The path.

    Raises:
        OSError: if the file cannot be written; the message names it.
    """
    path = Path(path)
    state = model.state_dict() if isinstance(model, nn.Module) else model
    # Copies, because safetensors rejects tensors that share memory, such as tied weights.
    tensors = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in state.items()}
    with atomic(path) as partial:
        safetensors.torch.save_file(tensors, partial)
        # Written before the weights get their name, so that they never exist without their hash.
        with atomic(hash_file(path)) as line:
            line.write_text(f"{sha256_of(partial)}  {path.name}\n", encoding="utf-8")
    return path


def hash_file(path: Path) -> Path:
    """Return the path of a checkpoint's sha256 file, in the format that ``sha256sum --check`` reads."""
    return path.with_name(f"{path.name}.sha256")


def written_hash(path: Path) -> str:
    """Return the sha256 recorded beside a checkpoint; empty if there is none, as for somebody else's."""
    try:
        return hash_file(path).read_text(encoding="utf-8", errors="replace").split(" ")[0].strip() or "nothing"
    except FileNotFoundError:
        return ""


def check_content(path: Path) -> None:
    """Raise CheckpointError if a file does not match the hash beside it; a file without a hash passes."""
    expected = written_hash(path)
    if expected and (found := sha256_of(path)) != expected:
        raise CheckpointError(
            f"the checkpoint {str(path)!r} is not what was written: its sha256 is {found[:12]}..., {hash_file(path).name} says "
            f"{expected[:12]}.... "
            "Fetch or train it again; if you replaced the file yourself, remove the .sha256 file"
        )


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint file onto the CPU, under the keys of the file. Raises CheckpointError."""
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        # weights_only: an unpickler that builds tensors and plain values and calls nothing. The study's files also hold the options of
        # the training script; a Namespace carries no code, and is allowed only here, not process-wide.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may make the reader fail anywhere
        reason = str(error).strip().split("\n")[0] or "it ends too early"
        raise CheckpointError(
            f"cannot read the checkpoint {str(path)!r}: {type(error).__name__}: {reason}. It is damaged, or holds more than tensors and "
            "plain values; nothing in it was executed"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping):
        raise CheckpointError(f"the checkpoint {str(path)!r} holds a {type(state).__name__}, not a state_dict")
    if odd := [f"{key!r} is a {type(value).__name__}" for key, value in state.items() if not isinstance(value, Tensor)]:
        raise CheckpointError(f"the checkpoint {str(path)!r} holds no state_dict of tensors: {_first(odd)}")
    return {str(key): value for key, value in state.items()}


def rename_keys(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state under the model's own keys, as far as removing a wrapper's prefix can.

    Of several renamings, the one that matches most of the model's keys is chosen; among equals, the one that changes fewest. A model
    whose weights have other names in files may define ``own_key(key) -> str``.
    """
    own_key = getattr(model, "own_key", lambda key: key)
    wanted = model.state_dict().keys()
    readings: tuple[Callable[[str], str], ...] = (str, _without_module, lambda key: _without_module(key).removeprefix("model."))
    candidates = [{own_key(read(key)): value for key, value in state.items()} for read in readings]
    # If two keys became one, a tensor would be hidden: skip such a renaming.
    candidates = [found for found in candidates if len(found) == len(state)]
    return max(candidates, key=lambda found: len(wanted & found.keys()), default=dict(state))


def _without_module(key: str) -> str:
    """Remove the ``module.`` that DataParallel adds to a net or to part of it (``features.module.0.weight``)."""
    return ".".join(part for part in key.split(".") if part != "module")


def _check_fit(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    wanted = model.state_dict()
    shapes = {key: (tuple(state[key].shape), tuple(wanted[key].shape)) for key in wanted if key in state}
    faults = {
        "missing keys": [key for key in wanted if key not in state],
        "unexpected keys": [key for key in state if key not in wanted],
        "wrong shapes": [f"{key} is {a} in the file and {b} in the model" for key, (a, b) in shapes.items() if a != b],
        "wrong values": [fault for key, (a, b) in shapes.items() if a == b and (fault := _unfit(key, state[key], wanted[key]))],
    }
    if parts := [f"{len(found)} {what}: {_first(found)}" for what, found in faults.items() if found]:
        raise CheckpointError(f"the checkpoint {str(path)!r} does not fit the model. {'; '.join(parts)}")


def _unfit(key: str, value: Tensor, wanted: Tensor) -> str:
    """Return why a tensor cannot be loaded as a weight; empty if it can."""
    if value.is_floating_point() != wanted.is_floating_point() or value.is_complex() or value.is_quantized:
        return f"{key} is {value.dtype} in the file and {wanted.dtype} in the model"
    if value.is_floating_point() and not (finite := value.float().isfinite()).all():
        return f"{key} holds {int((~finite).sum())} values that are NaN or infinite"
    return ""


def _first(found: list[str]) -> str:
    return f"{', '.join(found[:3])}{', ...' if len(found) > 3 else ''}"
