"""Reading and writing weights. Nothing in a checkpoint file is ever executed."""

from __future__ import annotations

import os
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor, nn


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or does not fit the model. The message names the file and the first differences."""


def load_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Load weights strictly, onto the device the model is on.

    Args:
        model: the bare net.
        path: our own ``.safetensors``.

    Raises:
        CheckpointError: missing, unreadable or truncated file; missing or unexpected keys; wrong shapes.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {str(path)!r}")
    _check_fit(model, state := read_state_dict(path), path)
    model.load_state_dict(state)
    return model


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, on the CPU. Raises CheckpointError."""
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"cannot read the checkpoint {str(path)!r}: {error}") from error


def _check_fit(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    shapes = [
        f"{key} is {tuple(state[key].shape)} in the file and {tuple(wanted[key].shape)} in the model"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    parts = [
        f"{len(found)} {what}: {', '.join(found[:3])}{', ...' if len(found) > 3 else ''}"
        for what, found in (("missing keys", missing), ("unexpected keys", unexpected), ("wrong shapes", shapes))
        if found
    ]
    if parts:
        raise CheckpointError(f"the checkpoint {str(path)!r} does not fit the model. {'; '.join(parts)}")
