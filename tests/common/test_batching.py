import pytest
import torch

from idsds.common.batching import default_batch, halving, in_batches


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_slices_are_put_together_in_order(size):
    x, y = torch.arange(7.0), torch.arange(7) * 10
    assert torch.equal(in_batches(lambda a, b: a + b, x, y, size=size), x + y)


def test_halving_ends_at_the_size_that_fits():
    tried = []

    def needs_memory(size):
        tried.append(size)
        if size > 3:
            raise torch.OutOfMemoryError("simulated")
        return "done"

    assert halving(needs_memory, 16) == ("done", 2)
    assert tried == [16, 8, 4, 2]


def test_one_that_does_not_fit_raises():
    with pytest.raises(torch.OutOfMemoryError):
        halving(lambda size: (_ for _ in ()).throw(torch.OutOfMemoryError("simulated")), 4)


def test_a_cpu_that_runs_out_of_memory_halves_as_well():
    def too_much(size):
        return torch.empty(10**17 if size > 2 else size)  # 400 PB: the CPU's error is a plain RuntimeError

    assert halving(too_much, 8)[1] == 2
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        halving(lambda size: torch.empty(10**17), 4)


def test_an_error_that_is_not_about_memory_is_raised_at_once():
    tried = []

    def wrong(size):
        tried.append(size)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        halving(wrong, 8)
    assert tried == [8]


def test_other_errors_are_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        halving(lambda size: 1 / 0, 4)


def test_default_batch_is_bounded_by_memory(monkeypatch):
    large, small = torch.empty(1, 3, 224, 224), torch.empty(1, 3, 32, 32)
    assert 1 <= default_batch(large) <= default_batch(small)
    monkeypatch.setenv("IDSDS_MEMORY_GB", "1e-9")  # one byte
    assert default_batch(large) == 1
    monkeypatch.setenv("IDSDS_MEMORY_GB", "0.2")
    assert default_batch(large) < 8
    for wrong in ("a lot", "0", "-1", "nan"):
        monkeypatch.setenv("IDSDS_MEMORY_GB", wrong)
        with pytest.raises(ValueError, match=f"IDSDS_MEMORY_GB must be a number of gigabytes above 0, not '{wrong}'"):
            default_batch(large)
