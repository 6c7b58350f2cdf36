"""Writes byzfl.json: what byzfl 0.0.11 (PyPI) makes of a few vectors; run where byzfl and numpy are installed.

byzfl 0.0.11 wants torchvision, matplotlib and seaborn, which nothing here needs, so its numbers are committed instead.
Its Krum counts n - f - 1 neighbours where Blanchard et al. count n - f - 2: the tests ask ours for that number. Its
geometric median starts from 0 and not from the mean: it is run until it stands still.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from byzfl.aggregators import aggregators, preaggregators

VECTORS = np.random.default_rng(7).standard_normal((11, 6)).round(3) + np.where(np.arange(11) < 2, 4.0, 0.0)[:, None]


def main() -> int:
    """Compute and write."""
    rules: dict[str, Any] = {
        "mean": aggregators.Average(),
        "median": aggregators.Median(),
        "trimmed_mean": aggregators.TrMean(f=2),
        "geometric_median": aggregators.GeometricMedian(nu=1e-6, T=2000),
        "krum": aggregators.Krum(f=2),
        "multi_krum": aggregators.MultiKrum(f=2),
        "centred_clipping": aggregators.CenteredClipping(L=5, tau=2.0),
    }
    results = {name: rule(VECTORS.copy()).tolist() for name, rule in rules.items()}
    results["nnm"] = preaggregators.NNM(f=2)(VECTORS.copy()).tolist()
    table = {"byzfl": "0.0.11", "numpy": np.__version__, "python": sys.version.split()[0]}
    text = json.dumps({"versions": table, "vectors": VECTORS.tolist(), "results": results}, indent=1)
    Path(__file__).with_name("byzfl.json").write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
