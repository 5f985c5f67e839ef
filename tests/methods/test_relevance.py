"""Rules of relevance, against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from idsds.methods.relevance import linear_rule, product_rule, sum_rule

EPSILON = 1e-9


class TestRules:
    """The formulas of the paper, written with loops or explicit matrices."""

    generator = torch.Generator().manual_seed(0)

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def test_linear(self) -> None:
        x, weight, relevance = self.draw(5), self.draw(4, 5), self.draw(4)
        raising = (weight * x).clamp(min=0)  # what each input adds to each output, where it adds
        wanted = (raising / (raising.sum(dim=1, keepdim=True) + EPSILON) * relevance[:, None]).sum(dim=0)
        found = linear_rule(relevance[None], x[None], weight)[0]
        assert torch.allclose(found, wanted, rtol=1e-9, atol=0)
        assert found.sum().item() == pytest.approx(relevance.sum().item(), abs=1e-7)  # relevance is conserved, but for the 1e-9

    def test_product(self) -> None:
        a, b, relevance = self.draw(2, 3, 4), self.draw(2, 4, 5), self.draw(2, 3, 5)
        terms = a[..., None] * b[:, None] / ((a @ b)[:, :, None] + EPSILON) * relevance[:, :, None]  # (2, 3, 4, 5)
        of_a, of_b = product_rule(relevance, a, b)
        assert torch.allclose(of_a, terms.sum(dim=3) / 2, rtol=1e-9, atol=0)
        assert torch.allclose(of_b, terms.sum(dim=1) / 2, rtol=1e-9, atol=0)

    def test_sum_conserves_the_relevance_of_each_image(self) -> None:
        a, b, relevance = self.draw(2, 3, 4), self.draw(2, 3, 4), self.draw(2, 3, 4)
        of_a, of_b = sum_rule(relevance, a, b)
        for image in range(2):
            raw = [value[image] * relevance[image] / (a[image] + b[image] + EPSILON) for value in (a, b)]
            size = sum(abs(r.sum()) for r in raw)
            for found, r in zip((of_a, of_b), raw, strict=True):
                wanted = r / r.sum() * abs(r.sum()) / size * relevance[image].sum()
                assert torch.allclose(found[image], wanted, rtol=1e-6, atol=0)  # three of the 1e-9 in a row
        assert torch.allclose((of_a + of_b).sum(dim=(1, 2)), relevance.sum(dim=(1, 2)), rtol=1e-6)
