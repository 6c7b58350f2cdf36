"""Labelled images: loading a data set, and dealing it out to server and clients.

It owns where images come from and who gets which. It knows numpy alone, no torch and no process: `deal` is what the
launcher calls, and what each process is handed is one `Shard`.
"""

from __future__ import annotations

from collections.abc import Callable

from steelyard.config import DataConfig
from steelyard.data import cifar10, digits, fashion_mnist, svhn
from steelyard.data.dataset import Dataset
from steelyard.errors import UserError, described
from steelyard.parsing import choose

__all__ = ["DATASETS", "Dataset", "load"]

DATASETS: dict[str, Callable[[str], Dataset]] = {
    "cifar10": cifar10.load,
    "digits": digits.load,
    "fashion_mnist": fashion_mnist.load,
    "svhn": svhn.load,
}


def load(config: DataConfig) -> Dataset:
    """The data set that `[data] dataset` names, looked for in `[data] folder` alone if that is set.

    Raises:
        UserError: there is no such data set, or its files are nowhere to be found or are damaged.
    """
    dataset = choose(config.dataset, DATASETS, "dataset")(config.folder)
    if not isinstance(dataset, Dataset):
        raise UserError(f"[data] dataset {config.dataset}: a Dataset expected, got {described(dataset)}")
    return dataset
