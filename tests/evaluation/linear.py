"""A net whose records are known exactly, for tests of what is written and read."""

import torch
from torch import nn
from torch.utils.data import TensorDataset


class Linear(nn.Module):
    """Logits that are linear in the image, times ``scale``."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale
        self.fc = nn.Linear(3 * 8 * 16, 4)
        with torch.no_grad():
            self.fc.weight.copy_(torch.linspace(-1, 1, self.fc.weight.numel()).sin().view_as(self.fc.weight))
            self.fc.bias.zero_()

    def forward(self, images):
        return self.scale * self.fc(images.flatten(1))


def data(n=6, shift=0.0):
    """Images that are not square, of four classes."""
    return TensorDataset(torch.randn(n, 3, 8, 16, generator=torch.Generator().manual_seed(1)) + shift, torch.arange(n) % 4)
