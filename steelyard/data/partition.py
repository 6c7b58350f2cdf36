"""Who gets which sample: four rules that partition labelled samples among clients.

Legend: n samples, K labels, N clients. A rule is a pure function (labels [n], N, generator, config) -> owner [n], the
client of each sample or NOBODY; so shards are disjoint by construction. It knows labels alone, no images.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from steelyard.config import DataConfig
from steelyard.data.dataset import Indices, Labels
from steelyard.errors import UserError, described
from steelyard.parsing import choose

Rule = Callable[[Labels, int, np.random.Generator, DataConfig], Indices]

NOBODY = -1
_DRAWS = 100  # redraws before the minimum is enforced or given up


def partition(labels: Labels, count: int, generator: np.random.Generator, config: DataConfig) -> tuple[Indices, ...]:
    """Deal samples out by the rule that `config.partition` names.

    Args:
        labels: [n], the labels of the samples to deal out.
        count: number of clients, N.
        generator: the only source of randomness.
        config: rule, its parameters, and `minimum_per_client`.

    Returns:
        N sorted arrays of indices into `labels`, pairwise disjoint, none shorter than the minimum. Together they are
        all n samples, except that "labels" leaves out a label that no client holds.

    Raises:
        UserError: the minimum cannot be had, or the rule gave something else than owners.
    """
    needed = count * config.minimum_per_client
    if len(labels) < needed:
        raise UserError(
            f"[data] minimum_per_client: {count} clients x {config.minimum_per_client} = {needed} samples expected, "
            f"{len(labels)} are left to deal out; lower it, or take fewer clients"
        )
    owner = choose(config.partition, PARTITIONS, "partition")(labels, count, generator, config)
    where = f"[data] partition {config.partition}"
    if not isinstance(owner, np.ndarray) or owner.shape != labels.shape or owner.dtype.kind not in "iu":
        raise UserError(f"{where}: an owner for each of {len(labels)} samples expected, got {described(owner)}")
    if owner.min() < NOBODY or owner.max() >= count:
        raise UserError(
            f"{where}: owners from {NOBODY} (nobody) to {count - 1} expected, got {owner.min()} to {owner.max()}"
        )
    shards = tuple(np.flatnonzero(owner == client) for client in range(count))
    for client, shard in enumerate(shards):
        if len(shard) < config.minimum_per_client:
            raise UserError(
                f"{where}: at least minimum_per_client = {config.minimum_per_client} samples for each client expected, "
                f"got {len(shard)} for client {client}"
            )
    return shards


def stratified(labels: Labels, size: int, generator: np.random.Generator) -> Indices:
    """Draw `size` of n samples so that each label keeps its part of the whole, exactly up to rounding.

    Returns:
        Sorted indices into `labels`, [size]. The parts are rounded by largest remainder, ties to the lower label.
    """
    assert 0 <= size <= len(labels), (size, len(labels))
    if not size:
        return np.empty(0, np.int64)
    totals = np.bincount(labels)
    quota, remainder = np.divmod(totals * size, len(labels))
    quota[np.argsort(-remainder, kind="stable")[: size - quota.sum()]] += 1
    return np.flatnonzero(_assign(labels, quota[:, None], generator) == 0)


def iid(labels: Labels, count: int, generator: np.random.Generator, config: DataConfig) -> Indices:  # noqa: ARG001 - a rule
    """Every client draws from the same pool; sizes differ by one at most."""
    return generator.permutation(np.arange(len(labels)) % count)


def quantity(labels: Labels, count: int, generator: np.random.Generator, config: DataConfig) -> Indices:
    """Sizes are skewed, labels are not: beyond the minimum, sizes are in proportion to a draw of Dirichlet(alpha)."""
    spare = len(labels) - count * config.minimum_per_client
    shares = generator.dirichlet(np.full(count, config.alpha))
    sizes = config.minimum_per_client + _cut(spare, shares)
    return generator.permutation(np.repeat(np.arange(count), sizes))


def dirichlet(labels: Labels, count: int, generator: np.random.Generator, config: DataConfig) -> Indices:
    """Each label is cut among the clients in proportion to its own draw of Dirichlet(alpha) (Yurochkin et al. 2019).

    The smaller alpha, the fewer clients hold most of a label. Redrawn while a client is below the minimum, 100 times
    at most; then the last draw is mended by moving samples from the largest client.
    """
    totals = np.bincount(labels)
    for _ in range(_DRAWS):
        shares_KN = generator.dirichlet(np.full(count, config.alpha), size=len(totals))
        sizes_KN = np.stack([_cut(total, shares) for total, shares in zip(totals, shares_KN, strict=True)])
        if sizes_KN.sum(0).min() >= config.minimum_per_client:
            break
    else:
        _mend(sizes_KN, config.minimum_per_client)
    return _assign(labels, sizes_KN, generator)


def few_labels(labels: Labels, count: int, generator: np.random.Generator, config: DataConfig) -> Indices:
    """Each client holds `labels_per_client` labels at most; a label's samples are cut evenly among its holders.

    Each client in turn picks the labels held least so far, ties at random: when N x labels_per_client reaches the
    number of labels, each is held by somebody. With fewer, the labels that nobody picked are left out.

    Raises:
        UserError: in 100 draws some client was always below the minimum.
    """
    totals = np.bincount(labels)
    for _ in range(_DRAWS):
        holds_KN = _pick_labels(totals > 0, count, generator, config.labels_per_client)
        sizes_KN = np.stack([_share(total, row, generator) for total, row in zip(totals, holds_KN, strict=True)])
        if sizes_KN.sum(0).min() >= config.minimum_per_client:
            return _assign(labels, sizes_KN, generator)
    raise UserError(
        f"[data] minimum_per_client: {config.minimum_per_client} samples for each of {count} clients expected, but "
        f"{len(labels)} samples with {config.labels_per_client} labels per client gave some client fewer in each of "
        f"{_DRAWS} draws; lower it, or raise labels_per_client"
    )


def _pick_labels(
    present_K: npt.NDArray[np.bool_], count: int, generator: np.random.Generator, per_client: int
) -> npt.NDArray[np.bool_]:
    """Which client holds which label, [K, N]."""
    holds_KN = np.zeros((len(present_K), count), bool)
    present = np.flatnonzero(present_K)
    for client in generator.permutation(count):
        shuffled = generator.permutation(present)
        least_held = shuffled[np.argsort(holds_KN[shuffled].sum(1), kind="stable")]
        holds_KN[least_held[:per_client], client] = True
    return holds_KN


def _share(total: int, holds_N: npt.NDArray[np.bool_], generator: np.random.Generator) -> Indices:
    """A label's samples per client, [N]: even among its holders, the remainder to some of them at random."""
    sizes_N = np.zeros(len(holds_N), np.int64)
    holders = generator.permutation(np.flatnonzero(holds_N))
    if len(holders):
        each, over = divmod(int(total), len(holders))
        sizes_N[holders] = each
        sizes_N[holders[:over]] += 1
    return sizes_N


def _cut(total: int, shares_N: npt.NDArray[np.float64]) -> Indices:
    """Whole sizes [N] that sum to `total`, in proportion to shares that sum to 1."""
    edges = np.floor(np.cumsum(shares_N) * total).astype(np.int64)
    edges[-1] = total
    return np.diff(np.minimum(edges, total), prepend=0)


def _mend(sizes_KN: Indices, minimum: int) -> None:
    """Bring each client up to the minimum, in place: the largest client gives of its commonest label.

    It ends, since each step moves at least one sample and the whole suffices: while one is short, the largest is not.
    """
    while (sizes_N := sizes_KN.sum(0)).min() < minimum:
        short, giver = int(sizes_N.argmin()), int(sizes_N.argmax())
        label = int(sizes_KN[:, giver].argmax())
        moved = min(minimum - sizes_N[short], sizes_N[giver] - minimum, sizes_KN[label, giver])
        sizes_KN[label, giver] -= moved
        sizes_KN[label, short] += moved


def _assign(labels: Labels, sizes_KN: Indices, generator: np.random.Generator) -> Indices:
    """Owner [n] of each sample: of label k, client j gets `sizes_KN[k, j]` samples, which ones is random."""
    owner = np.full(len(labels), NOBODY, np.int64)
    for label, sizes_N in enumerate(sizes_KN):
        chosen = generator.permutation(np.flatnonzero(labels == label))[: sizes_N.sum()]
        owner[chosen] = np.repeat(np.arange(len(sizes_N)), sizes_N)
    return owner


PARTITIONS: dict[str, Rule] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "labels": few_labels,
    "quantity": quantity,
}
