"""What every protocol of the registry must do; a new one is tested here without new test code."""

from __future__ import annotations

import inspect
import random
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from scipy import stats
from torch import Tensor, multiprocessing, nn

from idsds import evaluate
from idsds.evaluation.run import PassCounter
from idsds.methods import Method, OwnMethod, create_method
from idsds.methods.base import Passes
from idsds.models import create_model
from idsds.protocols import PROTOCOLS, Batch, list_protocols
from idsds.protocols.base import MeanOverImages
from idsds.protocols.single_deletion import SingleDeletionScore
from idsds.statistics.scores import HIGHER, LOWER
from tests.methods.nets import ConvNet, images_of, seeded
from tests.protocols.creatures import creatures

NAMES = ["IxG", "IxG abs", "Gradient", "Random"]
# Every protocol of single images: whether higher is better, whether it wants the model fine-tuned on deletions.
PUBLISHED = {
    "idsds": (True, True),
    "single_deletion": (True, False),
    "hyperparameter_sensitivity": (True, True),
    "incremental_deletion": (True, False),
    "incremental_deletion_descending": (False, False),
    "insertion": (True, False),
    "infidelity": (False, False),
    "max_sensitivity": (False, False),
    "augmentation_robustness": (True, False),
    "sanity_check": (False, False),
    "symmetric_relevance_gain": (True, False),
    "in_domain_incremental_deletion": (True, True),
    "in_domain_relevance_gain": (True, True),
    "f_fidelity": (True, True),
    "road": (False, False),
    "sensitivity_n": (True, False),
    "faithfulness_correlation": (True, False),
    "grid_pointing_game": (True, False),
    "difull": (True, False),
    "smooth_mprt": (False, False),
    "efficient_mprt": (True, False),
    "random_logit": (False, False),
    "controlled_synthetic_data_check": (True, False),
    "preservation_check": (True, False),
    "deletion_check": (True, False),
    "distractibility": (True, False),
    "part_single_deletion": (True, False),
    "target_sensitivity": (True, False),
    "part_shapley_correlation": (True, False),
    "funnybirds": (True, False),
}
# Protocols that draw perturbations, layers or parameters themselves with their default settings.
OWN_NOISE = (
    "infidelity",
    "max_sensitivity",
    "sanity_check",
    "smooth_mprt",
    "efficient_mprt",
    "random_logit",
    "f_fidelity",
    "road",
    "sensitivity_n",
    "faithfulness_correlation",
    "grid_pointing_game",
)
# Protocols that move methods to other nets.
MOVING = ("sanity_check", "smooth_mprt", "efficient_mprt", "difull")
# The smallest settings that still use every part of a protocol.
SMALL = {"steps": 4, "samples": 3, "depths": 2, "grid": 2}


class Scores(MeanOverImages):
    """Scores as they are, to see what is counted."""

    function = staticmethod(lambda scores: scores)


def settings_of(protocol: str) -> dict[str, object]:
    entry = PROTOCOLS[protocol]
    known = {name for f in (entry.function, entry.prepare) if f for name in inspect.signature(f).parameters}
    return {name: value for name, value in SMALL.items() if name in known}


def run(protocol: str, net: nn.Module, methods: list[Method], batch: Batch, **settings: object) -> dict[str, dict[str, Tensor]]:
    entry = PROTOCOLS[protocol]
    settings = {**settings_of(protocol), **settings}
    prepared = entry.prepare(net, batch, seed=methods[0].seed, **settings) if entry.prepare else {}
    return entry.function(net, methods, batch, prepared, **settings)


class Pooled(ConvNet):
    """ConvNet with its mean over positions as a module, which DiFull can take apart."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.features = nn.AdaptiveAvgPool2d(1)


@pytest.fixture
def net():
    return seeded(Pooled, classes=4)


@pytest.fixture
def batch():
    """Not square, more than one image, one target each; little contrast, so that rotations hardly change what the model says."""
    companions = 0.2 * images_of(8, 16, 20) - 0.1, torch.arange(8) % 4
    pixels = 0.2 * images_of(3, 16, 20) - 0.1
    return replace(creatures([0, 3, 1], [2, 2, 2]), images=pixels, companions=lambda: companions)


def part(batch: Batch, indices: list[int]) -> Batch:
    chosen = torch.tensor(indices)
    return replace(batch, images=batch.images[chosen], targets=batch.targets[chosen], image_ids=[batch.image_ids[i] for i in indices])


def create(net: nn.Module, seed: int = 0) -> list[Method]:
    return [create_method(name, net, seed=seed) for name in NAMES]


def test_the_registry():
    assert sorted(list_protocols("image")) == sorted(PUBLISHED)
    assert list_protocols("data set") == ["roar", "kar"]
    for name, (higher_is_better, in_domain) in PUBLISHED.items():
        assert (PROTOCOLS[name].higher_is_better, PROTOCOLS[name].in_domain) == (higher_is_better, in_domain)
    with pytest.raises(ValueError, match=r"unknown protocol 'infidelty'\. Did you mean 'infidelity'"):
        PROTOCOLS["infidelty"]


def test_protocols_of_a_whole_data_set_name_what_to_call():
    names = list_protocols("data set")
    assert {"roar", "kar"} <= set(names)
    assert sorted(names + list_protocols("image")) == sorted(list_protocols())
    for name in names:
        assert inspect.getdoc(PROTOCOLS[name].function)
        assert PROTOCOLS[name].source
        with pytest.raises(ValueError, match=rf"'{name}' scores a method over a whole data set.*call {re.escape(PROTOCOLS[name].call)}"):
            evaluate(["mini_resnet8"], ["IG"], protocol=name)
    with pytest.raises(ValueError, match=r"unknown level 'dataset'\. Did you mean 'data set'"):
        list_protocols("dataset")


@pytest.fixture(autouse=True)
def _any_image_fits_its_parts(monkeypatch):
    """The images of these batches are random numbers, not what the parts of their ids draw."""
    monkeypatch.setattr("idsds.protocols.parts.DIFFERS", float("inf"))


@pytest.mark.parametrize("protocol", list_protocols("data set"))
class TestEveryProtocolOfADataSet:
    shares = torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64)

    def score(self, protocol: str, accuracy: float | Tensor, control: float | Tensor) -> Tensor:
        given = (torch.as_tensor(values, dtype=torch.float64).expand(2, 3) for values in (accuracy, control))
        return PROTOCOLS[protocol].function(*given, self.shares)

    def test_scores_have_the_stated_range_and_direction(self, protocol):
        entry = PROTOCOLS[protocol]
        extremes = [self.score(protocol, *given) for given in ((0.0, 1.0), (1.0, 0.0))]
        torch.testing.assert_close(torch.stack(extremes).amin(), torch.tensor(entry.range[0], dtype=torch.float64))
        torch.testing.assert_close(torch.stack(extremes).amax(), torch.tensor(entry.range[1], dtype=torch.float64))
        assert (self.score(protocol, 0.3, 0.3) == 0).all()  # as good as the control
        better = 0.2 if protocol == "roar" else 0.6  # removed evidence costs accuracy, kept evidence holds it
        assert (self.score(protocol, better, 0.4) > 0).all()

    def test_nan_stays_with_its_curve(self, protocol):
        accuracy = torch.tensor([[0.5, 0.4, 0.3], [0.5, torch.nan, 0.3]])
        assert self.score(protocol, accuracy, 0.5).isnan().tolist() == [False, True]


@pytest.mark.parametrize("protocol", list_protocols("image"))
class TestEveryProtocol:
    def test_scores_have_the_stated_range(self, protocol, net, batch):
        entry = PROTOCOLS[protocol]
        assert entry.source
        assert inspect.getdoc(entry.function)
        for columns in run(protocol, net, create(net), batch).values():
            score = columns["score"]
            assert score.shape == (3,)
            assert not score.requires_grad
            assert score.isfinite().all() or entry.parts  # they ask some images nothing
            defined = score[score.isfinite()]
            assert (defined >= entry.range[0] - 1e-9).all()
            assert (defined <= entry.range[1] + 1e-9).all()
            assert all(len(column) == 3 for column in columns.values())

    def test_settings_are_named_and_of_plain_types(self, protocol, net, batch):
        """They become columns of the records, one value for all rows."""
        for parameter in inspect.signature(PROTOCOLS[protocol].function).parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY:
                assert isinstance(parameter.default, (int, float, str, bool, type(None)))

    def test_batch_equals_loop(self, protocol, net, batch):
        methods = create(net)
        together = run(protocol, net, methods, batch)
        alone = [run(protocol, net, methods, part(batch, [i])) for i in range(3)]
        backwards = run(protocol, net, methods, part(batch, [2, 1, 0]))
        for method in NAMES:
            for column, values in together[method].items():
                torch.testing.assert_close(torch.cat([one[method][column] for one in alone]), values, equal_nan=True)
                torch.testing.assert_close(backwards[method][column].flip(0), values, equal_nan=True)

    def test_methods_do_not_affect_each_other(self, protocol, net, batch):
        together = run(protocol, net, create(net), batch)
        for method in create(net):
            torch.testing.assert_close(
                run(protocol, net, [method], batch)[method.name]["score"], together[method.name]["score"], equal_nan=True
            )

    def test_randomness_is_keyed(self, protocol, net, batch):
        """By seed and id alone: moving the global generators changes nothing, another seed changes what the protocol itself draws."""
        states, python = (torch.random.get_rng_state(), np.random.get_state()), random.getstate()
        first = run(protocol, net, create(net), batch)
        torch.rand(7), np.random.rand(7), random.random()
        second = run(protocol, net, create(net), batch)
        torch.random.set_rng_state(states[0]), np.random.set_state(states[1]), random.setstate(python)
        other = run(protocol, net, create(net, seed=1), batch)
        for method in NAMES:
            torch.testing.assert_close(first[method]["score"], second[method]["score"], rtol=0, atol=0, equal_nan=True)
        # These methods draw nothing: what differs is the protocol's.
        same = all(torch.allclose(first[name]["score"], other[name]["score"], 0, 0, equal_nan=True) for name in ("IxG", "Gradient"))
        assert same == (protocol not in OWN_NOISE)

    def test_nothing_of_the_model_changes(self, protocol, net, batch):
        net.train()
        state = {name: value.clone() for name, value in net.state_dict().items()}
        run(protocol, net, create(net), batch)
        assert net.training
        assert all(parameter.requires_grad and parameter.grad is None for parameter in net.parameters())
        assert not any(module._forward_hooks for module in net.modules())
        for name, value in net.state_dict().items():
            torch.testing.assert_close(value, state[name], rtol=0, atol=0)

    def test_nan_stays_with_its_image(self, protocol, net, batch):
        spoilt = 1
        if PROTOCOLS[protocol].parts:
            pytest.skip("other classes are explained too: tests/protocols/test_funnybirds.py")

        def method(images: Tensor, targets: Tensor) -> Tensor:
            maps = images[:, 0].clone()
            maps[targets == batch.targets[spoilt]] = torch.nan
            return maps

        method = OwnMethod("mine", method, net)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="method '(mine|maps)' gave a NaN")
            if protocol in MOVING:  # it moves methods to other nets, and a callable cannot be moved
                with pytest.raises(ValueError, match="'mine' cannot be moved"):
                    run(protocol, net, [method], batch)
                return
            score = run(protocol, net, [method], batch)["mine"]["score"]
        assert score.isnan().tolist() == [False, True, False]
        metric = Scores()
        metric.update(score)
        assert (metric.count, metric.undefined) == (2, 1)
        torch.testing.assert_close(metric.compute(), score[[0, 2]].mean())

    def test_announced_passes_are_done(self, protocol, net, batch):
        entry, methods, counter = PROTOCOLS[protocol], create(net), PassCounter()
        with counter.watch(net):
            run(protocol, net, methods, batch)
        announced = entry.passes(methods, **settings_of(protocol))
        announced += entry.prepare_passes(**settings_of(protocol))
        if entry.parts:  # 2 objects; and of the classes that may have to be explained some are the same
            announced += Passes(2)
            assert counter.forward <= announced.times(3).forward
            assert counter.backward <= announced.times(3).backward
            return
        assert (counter.forward, counter.backward) == announced.times(3)

    def test_the_engine_runs_it(self, protocol, net, batch):
        """Real images, the defaults of every setting, records in a frame."""
        data = "sprites" if PROTOCOLS[protocol].parts else "digits"
        model = {"net": seeded(create_model, "mini_resnet8", dtype=torch.float32)}
        records = evaluate(model, ["IxG", "Random"], data, protocol, images=3, progress=False, batch_size=2)
        assert len(records) == 6
        assert set(records["protocol"]) == {protocol}
        assert records["score"].notna().any() or PROTOCOLS[protocol].parts
        settings = {p.name for p in inspect.signature(PROTOCOLS[protocol].function).parameters.values() if p.kind is p.KEYWORD_ONLY}
        assert settings <= set(records)


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


def test_every_protocol_says_its_direction_in_the_words_of_the_statistics():
    assert {entry.direction for entry in PROTOCOLS.values()} == {HIGHER, LOWER}
    assert all((entry.direction == HIGHER) == entry.higher_is_better for entry in PROTOCOLS.values())
