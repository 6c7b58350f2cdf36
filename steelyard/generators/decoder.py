"""A conditional decoder as a pure function of its weights, and its form on disk. It does not know how it is trained.

Legend: B samples, L latent values, C labels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from steelyard import bundle
from steelyard.config import Shape
from steelyard.errors import BadBundleError
from steelyard.generators.kinds import KINDS
from steelyard.generators.layers import Weights


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """Makes images of the labels that it was trained on.

    `kind` names the function that `weights` are the weights of, layers "decode.*"; nothing else is learned.
    `labels` are the labels it has seen, ascending: it refuses any other.
    """

    kind: str
    shape: Shape
    labels: tuple[int, ...]
    weights: Weights

    @property
    def latent(self) -> int:
        """The number L of latent values of a sample."""
        return int(self.weights["decode.0.weight"].shape[1]) - self.shape.classes

    def __call__(self, latents_BL: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        """Images [B, channels, height, width] in [0, 1]; twice differentiable in the latents.

        Raises:
            ValueError: a label that the decoder was not trained on.
        """
        unknown = sorted(set(labels_B.tolist()) - set(self.labels))
        if unknown:
            raise ValueError(f"labels {self.labels} expected, the decoder was not trained on {unknown}")
        return torch.sigmoid(KINDS[self.kind].decode(self.weights, latents_BL, labels_B, self.shape))

    def sample(self, labels_B: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Images of given labels from latents drawn from the standard normal prior by a generator of the CPU."""
        return self(torch.randn(len(labels_B), self.latent, generator=generator).to(labels_B.device), labels_B)

    def to(self, device: torch.device) -> Decoder:
        """The same decoder with its weights on a device, where latents and labels are then expected."""
        return replace(self, weights={name: tensor.to(device) for name, tensor in self.weights.items()})

    def save(self, path: Path, provenance: bytes = b"") -> None:
        """Write the decoder as a bundle file, atomically.

        Args:
            path: the file to make.
            provenance: what it was made of, see `decoder_store.Provenance`; part of the file, so of its digest.
        """
        arrays: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]] = {
            "kind": np.frombuffer(self.kind.encode(), dtype=np.uint8),
            "shape": np.array(
                [self.shape.channels, self.shape.height, self.shape.width, self.shape.classes], dtype=np.int64
            ),
            "labels": np.array(self.labels, dtype=np.int64),
        }
        if provenance:
            arrays["provenance"] = np.frombuffer(provenance, dtype=np.uint8)
        bundle.write_arrays(path, arrays | {name: tensor.numpy() for name, tensor in self.weights.items()})

    @classmethod
    def load(cls, path: Path) -> Decoder:
        """Read a decoder and verify its digest.

        Raises:
            BadBundleError: the file is malformed, no decoder of its kind, or its bytes do not match their digest.
        """
        arrays = bundle.read_arrays(path)
        weights = {name: torch.from_numpy(array.copy()) for name, array in arrays.items() if name.startswith("decode.")}
        try:
            kind = arrays["kind"].tobytes().decode()
            channels, height, width, classes = (int(size) for size in arrays["shape"])
            labels = tuple(int(label) for label in arrays["labels"])
        except (KeyError, ValueError) as error:
            raise BadBundleError("BAD_LAYOUT", f"{path.name}: a decoder expected: {error}") from None
        if kind not in KINDS:
            raise BadBundleError("BAD_LAYOUT", f"{path.name}: one of {', '.join(KINDS)} expected, got {kind[:40]!r}")
        shape = Shape(channels=channels, height=height, width=width, classes=classes)
        decoder = cls(kind=kind, shape=shape, labels=labels, weights=weights)
        if (fault := decoder._fault()) is not None:
            raise BadBundleError("BAD_LAYOUT", f"{path.name}: a decoder of kind {kind} expected: {fault}")
        return decoder

    def _fault(self) -> str | None:
        """What shows, when one image is made, that weights, labels and shape are not of one decoder."""
        expected = (1, self.shape.channels, self.shape.height, self.shape.width)
        try:
            image = self(torch.zeros(1, self.latent), torch.tensor(self.labels[:1], dtype=torch.int64))
        except (KeyError, IndexError, RuntimeError, ValueError) as error:
            return f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        if image.shape != expected:
            return f"images of {expected[1:]} expected, it makes {tuple(image.shape[1:])}"
        return None if image.isfinite().all() else "finite images expected, it makes others"
