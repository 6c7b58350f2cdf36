"""What made runs, and of which data, by their manifests: neither is in the digest that names a run.

Runs of other data cannot be compared. Those of other code, libraries or processors can, if it is said which.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from steelyard.errors import UserError

Made = Mapping[str, str]
LISTED = 5  # runs by name; table.csv has what made each


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Runs in which something that numbers depend on is `other` than it usually is."""

    what: str
    usual: str
    other: str
    runs: tuple[str, ...]

    @property
    def names(self) -> str:
        """The first of the runs, and how many more there are."""
        more = len(self.runs) - LISTED
        return ", ".join(self.runs[:LISTED]) + (f" and {more} more" if more > 0 else "")


def made(manifest: Mapping[str, Any]) -> dict[str, str]:
    """What a run's numbers depend on beside its experiment and its data, as far as its manifest says.

    Where a run went on elsewhere or later, with something else than it began, both are named. Compiled filtering counts
    only where the experiment's path uses it: those with `winograd` in their names, which a test holds them to.
    """
    filters = "winograd" in manifest.get("experiment", {}).get("scoring", {}).get("path", "winograd")
    found: dict[str, dict[str, None]] = {}
    for each in (manifest, *manifest.get("continued", ())):
        facts = {"revision": each.get("revision") or "unknown"}
        facts |= {name: each[name] for name in ("processor", "python") if name in each}
        facts |= each.get("versions", {})
        if filters and (compiled := each.get("compiled")):
            facts["compiled filtering"] = hashlib.sha256(json.dumps(compiled, sort_keys=True).encode()).hexdigest()[:10]
        for what, value in facts.items():
            found.setdefault(what, {})[value] = None
    return {what: ", then ".join(values) for what, values in found.items()}


def data_of(manifest: Mapping[str, Any]) -> str:
    """The SHA-256 of the data set that a run was dealt from; "" of runs that were made before it was noted."""
    data = manifest.get("data")
    return str(data.get("sha256", "")) if isinstance(data, dict) else ""


def differences(runs: Mapping[str, Made], usual: Made | None = None) -> list[Difference]:
    """Where runs were made otherwise than most of them; what a manifest does not say is not compared.

    Args:
        runs: what made each, by a name for a person.
        usual: what they are compared with in place of the most of them.
    """
    found = []
    for what in dict.fromkeys(what for each in runs.values() for what in each):
        counts = Counter(each[what] for each in runs.values() if what in each)
        most = counts.most_common(1)[0][0] if usual is None else usual.get(what)
        for other in counts:
            if most is not None and other != most:
                names = tuple(name for name, each in runs.items() if each.get(what) == other)
                found.append(Difference(what=what, usual=most, other=other, runs=names))
    return found


def check_data(found: Iterable[tuple[str, str, str]]) -> None:
    """See that all who had a data set had the same bytes of it, as far as that is known.

    Args:
        found: the data set, its SHA-256 or "", and whose it is, for a person.

    Raises:
        UserError: they are not the same.
    """
    owners: dict[str, dict[str, list[str]]] = {}
    for dataset, sha256, owner in (each for each in found if each[1]):
        owners.setdefault(dataset, {}).setdefault(sha256, []).append(owner)
    for dataset, by_digest in owners.items():
        if len(by_digest) > 1:
            each = "; ".join(
                f"{sha256[:10]} of {who[0]}{f' and {len(who) - 1} more' if len(who) > 1 else ''}"
                for sha256, who in by_digest.items()
            )
            raise UserError(
                f"{dataset}: the same data behind runs that are compared expected, got SHA-256 {each}. Put the right "
                "data in place and remove the runs of the other, to be made anew, or name another --out"
            )
