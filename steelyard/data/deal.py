"""One data set dealt out: a shard per client, and the validation, test and public sets.

Everything depends on `partition_seed` alone (the experiment's seed when none is given). The sets are drawn one after
the other, each with its own named generator, each stratified by label: test, validation, the clients' pool, public,
and the server's root set for defences that need one.
So what is drawn earlier does not depend on what is drawn later: with `samples_per_client` set, adding a public set
changes no shard, and a study with public data pairs with one without. (With `samples_per_client = 0` the pool is all
that the others leave, so there a public set makes the shards smaller.) It knows no process and no folder.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from steelyard.config import DataConfig, Experiment, Shape
from steelyard.data import load
from steelyard.data.dataset import Dataset, Floats, Indices, Labels
from steelyard.data.partition import partition, stratified
from steelyard.decoder_store import data_digest
from steelyard.defence import defence_config
from steelyard.errors import UserError
from steelyard.seeding import numpy_generator


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """Labelled images that one party holds.

    Args:
        images: float32 [n, channels, height, width] in [0, 1].
        labels: int64 [n].
        indices: int64 [n], their places in the data set, sorted; empty for a shard that was read from a file.
    """

    images: Floats
    labels: Labels
    indices: Indices = field(default_factory=lambda: np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.labels)

    def histogram(self, classes: int) -> Indices:
        """Samples per label, int64 [classes]."""
        return np.bincount(self.labels, minlength=classes)


@dataclass(frozen=True, slots=True, eq=False)
class Deal:
    """Who holds what, pairwise disjoint: `shards[k]` is client k's; `public` and `root` are empty unless asked for.

    `sha256` is that of the whole data set, whichever way it was dealt.
    """

    shape: Shape
    shards: tuple[Shard, ...]
    validation: Shard
    test: Shard
    public: Shard
    root: Shard
    sha256: str


def deal(experiment: Experiment) -> Deal:
    """Load the experiment's data set and deal it out.

    Raises:
        UserError: the data set is not to be had, or too small for what is asked of it.
    """
    dataset = load(experiment.data)
    defence = defence_config(experiment.defence)
    return deal_out(
        dataset,
        experiment.data,
        count=experiment.clients.count,
        seed=experiment.partition_seed,
        root=defence.root if defence else 0,
    )


def deal_out(dataset: Dataset, config: DataConfig, *, count: int, seed: int, root: int = 0) -> Deal:
    """Deal a data set out to `count` clients, and `root` samples to the server; see `deal`."""
    left = np.arange(len(dataset))

    def draw(part: str, size: int) -> Indices:
        nonlocal left
        chosen = stratified(dataset.labels[left], size, numpy_generator(seed, "deal", part))
        drawn, left = left[chosen], np.delete(left, chosen)
        return drawn

    pool_size = _pool_size(len(dataset), config, count, root)
    test = draw("test", config.test)
    validation = draw("validation", config.validation)
    pool = draw("pool", pool_size)
    public = draw("public", config.public)
    roots = draw("root", root) if root else np.empty(0, np.int64)
    shards = partition(dataset.labels[pool], count, numpy_generator(seed, "deal", "partition"), config)

    def shard(indices: Indices) -> Shard:
        return Shard(dataset.images[indices], dataset.labels[indices], indices)

    return Deal(
        shape=dataset.shape,
        shards=tuple(shard(pool[chosen]) for chosen in shards),
        validation=shard(validation),
        test=shard(test),
        public=shard(public),
        root=shard(roots),
        sha256=data_digest(dataset.images, dataset.labels),
    )


def _pool_size(total: int, config: DataConfig, count: int, root: int) -> int:
    """How many samples the clients share; checks that there are enough for everybody."""
    wanted, minimum = config.samples_per_client, config.minimum_per_client
    if 0 < wanted < minimum:
        raise UserError(
            f"[data] samples_per_client: 0 or at least minimum_per_client ({minimum}) expected, got {wanted}"
        )
    each = wanted or minimum
    held_back = config.test + config.validation + config.public + root
    needed = held_back + count * each
    if needed > total:
        roots = f"root {root} + " if root else ""
        raise UserError(
            f"[data] {config.dataset} has {total} samples, but test {config.test} + validation {config.validation} + "
            f"public {config.public} + {roots}{count} clients x {'' if wanted else 'at least '}{each} = {needed}; "
            f"lower one of them"
        )
    return count * wanted if wanted else total - held_back
