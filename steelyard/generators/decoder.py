"""A conditional decoder as a pure function of its weights, and its form on disk. It does not know how it is trained.

Legend: B samples, L latent values, C labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from steelyard import bundle
from steelyard.config import Shape

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """Makes images of the labels that it was trained on.

    `weights` are the layers `decode.0` to `decode.2` (weight [out, in] and bias [out]); nothing else is learned.
    `labels` are the labels it has seen, ascending: it refuses any other.
    """

    shape: Shape
    labels: tuple[int, ...]
    weights: Weights

    @property
    def latent(self) -> int:
        """The number L of latent values of a sample."""
        return int(self.weights["decode.0.weight"].shape[1]) - self.shape.classes

    def __call__(self, latents_BL: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        """Images [B, channels, height, width] in [0, 1]; differentiable in the latents.

        Raises:
            ValueError: a label that the decoder was not trained on.
        """
        unknown = sorted(set(labels_B.tolist()) - set(self.labels))
        if unknown:
            raise ValueError(f"labels {self.labels} expected, the decoder was not trained on {unknown}")
        return torch.sigmoid(decode(self.weights, latents_BL, labels_B, self.shape))

    def sample(self, labels_B: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Images of given labels from latents drawn from the standard normal prior."""
        return self(torch.randn(len(labels_B), self.latent, generator=generator), labels_B)

    def save(self, path: Path) -> None:
        """Write the decoder as a bundle file, atomically."""
        arrays: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]] = {
            "shape": np.array(
                [self.shape.channels, self.shape.height, self.shape.width, self.shape.classes], dtype=np.int64
            ),
            "labels": np.array(self.labels, dtype=np.int64),
        }
        bundle.write_arrays(path, arrays | {name: tensor.numpy() for name, tensor in self.weights.items()})

    @classmethod
    def load(cls, path: Path) -> Decoder:
        """Read a decoder and verify its digest.

        Raises:
            BadBundleError: the file is malformed, or its bytes do not match their digest.
        """
        arrays = dict(bundle.read_arrays(path))
        channels, height, width, classes = (int(size) for size in arrays.pop("shape"))
        labels = tuple(int(label) for label in arrays.pop("labels"))
        weights = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        shape = Shape(channels=channels, height=height, width=width, classes=classes)
        return cls(shape=shape, labels=labels, weights=weights)


def decode(weights: Weights, latents_BL: torch.Tensor, labels_B: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Pixel logits [B, channels, height, width]: a perceptron of two hidden layers on latents and one-hot labels."""
    hidden = torch.cat([latents_BL, functional.one_hot(labels_B, shape.classes).to(latents_BL.dtype)], dim=1)
    for layer in ("decode.0", "decode.1"):
        hidden = functional.softplus(linear(weights, layer, hidden))
    return linear(weights, "decode.2", hidden).view(-1, shape.channels, shape.height, shape.width)


def linear(weights: Weights, layer: str, inputs: torch.Tensor) -> torch.Tensor:
    """One fully connected layer, by its name."""
    return functional.linear(inputs, weights[f"{layer}.weight"], weights[f"{layer}.bias"])
