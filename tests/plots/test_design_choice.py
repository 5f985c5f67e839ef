import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from idsds import plots
from idsds.studies import accuracy_tradeoff as tradeoff

from .overlap import outside, overlaps, text_boxes
from .test_rank_methods import FAMILIES, ranked

mpl.use("agg")


@pytest.mark.parametrize("columns", [1, 2])
def test_design_choices_join_within_a_chain_by_their_verdicts(columns):
    models = ("top", "middle", "bottom", "other", "another")
    table = ranked(models=models)
    chains = [["top", "middle", "bottom"], ["other", "another"]]
    rows = [("top", "middle", "IG", "supported"), ("middle", "bottom", "IG", "contradicted"), ("top", "bottom", "IG", "supported")]
    differences = pd.DataFrame(rows, columns=["higher", "lower", "method", "verdict"])
    figure = plots.design_choice(table, differences, chains, FAMILIES, columns=columns)
    (axes,) = figure.axes
    colour = plots.look_of("IG").colour
    joins = [line for line in axes.lines if line.get_alpha() == 0.55 and line.get_color() == colour]
    assert [line.get_linestyle() for line in joins] == ["-", "--", ":"], "two in the first chain, one in the second, none between"
    means = table[table["method"] == "IG"].set_index("model")["mean"]
    assert joins[0].get_xdata() == pytest.approx([means["top"], means["middle"]])
    boxes = text_boxes(figure)
    assert overlaps(boxes) == []
    assert outside(figure, boxes) == []


def points(n=15):
    rng = np.random.default_rng(2)
    accuracy, score = rng.uniform(0.94, 0.98, n), rng.uniform(0.5, 0.75, n)
    table = pd.DataFrame({"model": [f"mini_resnet_{i}" for i in range(n)], "accuracy": accuracy, "idsds": score, "method": "IG"})
    ends = {f"{name}_{end}": table[name] + shift for name in ("accuracy", "idsds") for end, shift in (("low", -0.02), ("high", 0.02))}
    return table.assign(**ends, front=tradeoff.on_front(table[["accuracy", "idsds"]].to_numpy()), count=100, accuracy_count=500)


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("published", [None, tradeoff.published_points()], ids=["ours", "published"])
def test_every_model_of_the_scatter_is_named_and_no_name_covers_another(columns, published):
    table = points(10 if columns == 1 else 15)
    figure = plots.accuracy_tradeoff(table, published=published, columns=columns)
    boxes = text_boxes(figure)
    names = [text for text, _ in boxes]
    assert set(table["model"]) <= set(names)
    assert published is None or set(published["model"]) <= set(names)
    assert overlaps(boxes) == []
    assert outside(figure, boxes) == []
    assert figure.get_figwidth() == plots.COLUMNS[columns]
    labels = [text for text in (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) if "higher is better" in text]
    assert len(labels) == 2
