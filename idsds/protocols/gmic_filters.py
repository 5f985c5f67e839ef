"""The photo filters of the augmentation study, run by G'MIC itself (optional, ``pip install gmic``).

The commands and their parameters are the study's. :mod:`idsds.protocols.robustness` has filters of the same names that need only
torchvision, and says how similar they are: nearly the same for ``sharpen``, unrelated for ``chroma_boost``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: The study's commands, by the names in its tables.
COMMANDS = {
    "detail": "fx_freaky_details 2,10,1,11,0,32,0",
    "local_normalisation": "normalize_local 8,10",
    "chroma_boost": "fx_boost_chroma 90,0,0",
    "mighty_detail": "fx_mighty_details 25,1,25,1,11,0",
    "sharpen": "sharpen 300",
}


def load_gmic() -> Any:
    """Import the ``gmic`` package.

    Raises:
        ImportError: if it is not installed, with what to do.
    """
    try:
        import gmic
    except ImportError as error:
        raise ImportError(
            "filters='gmic' needs G'MIC: pip install gmic (Linux wheels); "
            "filters='torchvision' needs nothing else, but changes colours and details differently"
        ) from error
    return gmic


def apply_command(images: Tensor, command: str) -> Tensor:
    """Apply a G'MIC command to images (B, 3, H, W) in [0, 1], one by one on the CPU, and clip the result to [0, 1].

    G'MIC works on values from 0 to 255 and stores an image as width x height x depth x channels.

    Raises:
        ImportError: without the package.
        ValueError: if the command does not return one image of the same size.
    """
    gmic = load_gmic()
    found = []
    for image in images.detach().to("cpu", torch.float32):
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy() * 255)  # (H, W, 3)
        results = gmic.run(command, gmic.ImageList([gmic.Image.from_yxc(pixels)]))
        values = torch.from_numpy(np.array(results[0].to_numpy(), dtype=np.float32))  # (W, H, 1, 3)
        if len(results) != 1 or values.shape != (image.shape[2], image.shape[1], 1, image.shape[0]):
            raise ValueError(f"G'MIC's {command!r} gave {len(results)} image(s), the first of shape {tuple(values.shape)}")
        found.append(values[:, :, 0].permute(2, 1, 0) / 255)
    return torch.stack(found).clamp(0, 1).to(images)


GMIC_FILTERS = {name: partial(apply_command, command=command) for name, command in COMMANDS.items()}
