"""The 1,797 handwritten digits of 8x8 pixels that come inside scikit-learn: an experiment that needs no download."""

from __future__ import annotations

from steelyard.data.dataset import Dataset, grey


def load(folder: str = "") -> Dataset:  # noqa: ARG001 - every data set has this signature; this one has no files
    """The digits, in scikit-learn's order; `folder` means nothing here."""
    from sklearn.datasets import load_digits

    images, labels = load_digits().images, load_digits().target
    return grey(images, labels, white=16, classes=10)
