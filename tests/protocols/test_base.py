import numpy as np
import pytest
import torch
import torch.distributed as dist
from scipy import stats
from torch import multiprocessing

from idsds.protocols.base import MeanOverImages
from idsds.protocols.single_deletion import SingleDeletionScore


def _sums_and_drops():
    generator = torch.Generator().manual_seed(0)
    sums, drops = torch.randn(2, 7, 16, generator=generator)
    sums[4] = 1.0  # undefined
    return sums, drops


def test_metric_is_the_mean_over_images_and_not_over_batches():
    sums, drops = _sums_and_drops()
    metric = SingleDeletionScore()
    for part in (slice(0, 5), slice(5, 7)):
        metric.update(sums[part], drops[part])
    defined = [stats.spearmanr(sums[i], drops[i]).statistic for i in (0, 1, 2, 3, 5, 6)]
    assert metric.compute() == pytest.approx(np.mean(defined), abs=1e-12)
    assert (metric.count, metric.undefined) == (6, 1)
    assert metric.higher_is_better
    metric.reset()
    metric.update(sums[:1], drops[:1])
    assert metric.count == 1


def test_images_that_come_twice_count_once():
    sums, drops = _sums_and_drops()
    metric = SingleDeletionScore()
    metric.update(sums[:4], drops[:4], image_ids=torch.tensor([10, 11, 12, 13]))
    metric.update(sums[:2], drops[:2], image_ids=torch.tensor([10, 11]))
    assert metric.count == 4
    assert metric.compute() == pytest.approx(np.mean([stats.spearmanr(sums[i], drops[i]).statistic for i in range(4)]), abs=1e-12)


def test_settings_reach_the_function_and_torchmetrics():
    class Share(MeanOverImages):
        function = staticmethod(lambda values, above: (values > above).double())

    metric = Share(above=2, sync_on_compute=False)
    metric.update(torch.tensor([1, 2, 3, 4]))
    assert metric.compute() == 0.5
    assert not metric.sync_on_compute


def _rank(rank, port, queue):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    sums, drops = _sums_and_drops()
    # What a distributed sampler does with seven images on two ranks: image 0 comes twice.
    mine = torch.tensor([0, 2, 4, 6] if rank == 0 else [1, 3, 5, 0])
    metric = SingleDeletionScore()
    for part in mine.split(2):
        metric.update(sums[part], drops[part], image_ids=part)
    queue.put((rank, float(metric.compute())))
    queue.close()
    queue.join_thread()
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_give_what_one_gives(unused_port):
    context = multiprocessing.get_context("fork")  # a spawned process would import everything again
    queue = context.Queue()
    processes = [context.Process(target=_rank, args=(rank, unused_port, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    metric = SingleDeletionScore()
    metric.update(*_sums_and_drops())
    assert found == {0: pytest.approx(float(metric.compute()), abs=1e-12), 1: pytest.approx(float(metric.compute()), abs=1e-12)}
