"""Models whose infidelity is known."""

import numpy as np
import pandas as pd


def table_of(models=24):
    """Models whose raw infidelity is their logits' scale and no more, and whose scale grows with their accuracy."""
    rng = np.random.default_rng(2)
    accuracy = rng.uniform(0.3, 1, models)
    change = np.exp(4 * accuracy + rng.normal(size=models) / 5)
    rows = {"dataset": np.repeat(["d", "e"], models // 2), "model": np.tile(["mini_resnet8", "mini_densenet"], models // 2)}
    rows |= {
        "fraction": np.tile([0.2, 0.6, 1.0], models // 3),
        "seed": np.arange(models) // 6 % 2,
        "accuracy": accuracy,
        "macro_f1": accuracy**2,
    }
    relative = rng.uniform(0.2, 0.9, models)
    rows |= {"weighted_precision": accuracy**0.9, "change": change, "relative": relative, "normalised": relative * change}
    rows |= {
        "raw": relative * change * 1.1,
        "raw_x10": 80 * change,
        "normalised_x10": relative * change,
        "sensitivity": rng.uniform(0.1, 1, models),
    }
    frames = [pd.DataFrame(rows).assign(method=name, family="gradient") for name in ("Gradient", "IxG")]
    return pd.concat([*frames, pd.DataFrame(rows).assign(method="Random", family="control", sensitivity=0.0)], ignore_index=True)
