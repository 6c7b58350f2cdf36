"""One convolution by Winograd's minimal filtering: its tables, its filters, and the call of the compiled winograd.c.

Minimal filtering makes 4x4 outputs of a 3x3 convolution from 36 products a pair of channels, not from 144, and of a 5x5
one from 64, not from 400: tiles of inputs and the filter are carried to points (a polynomial's values), multiplied
there and carried back (Lavin & Gray 2015, arXiv 1509.09308). Of a 3x3 one with stride 2 it makes them from 81: two
filterings, since its middle tap sees other inputs than the two beside it (winograd.c). Its rounding error hangs on the
points; with the best found it is about 1e-6 (3x3) and 3e-6 (5x5) of the outputs' spread, a direct convolution's 1e-7 to
5e-7. With products in bfloat16 it is about 1e-2 (3x3), a direct convolution's in bfloat16 2e-3; 5x5 would err by 1e-1.

Legend: B examples, C input and O output channels.
"""

from __future__ import annotations

import ctypes
import hashlib
from fractions import Fraction
from functools import cache
from math import prod
from pathlib import Path

import torch
from torch import nn

from steelyard.errors import UserError

TILE = 4
VECTOR = 16  # channels of both sides come in multiples of it, so that no vector of them is cut
# By size and stride. The table's order is what winograd.c relies on: a pair is a number and its negative.
POINTS = {
    (3, 1): (Fraction(0), Fraction(5, 8), Fraction(-5, 8), Fraction(3, 2), Fraction(-3, 2)),
    (5, 1): (Fraction(0), Fraction(1, 2), Fraction(-1, 2), Fraction(1), Fraction(-1), Fraction(2), Fraction(-2)),
    (3, 2): (Fraction(0), Fraction(3, 4), Fraction(-3, 4), Fraction(2)),
}


class _Convolution(ctypes.Structure):
    """As `struct convolution` in winograd.c, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "filters", "bias", "to_points", "to_outputs", "scratch")),
        *((name, ctypes.c_void_p) for name in ("addend", "y")),
        *((name, ctypes.c_long) for name in ("size", "stride", "batch", "height", "width")),
        *((name, ctypes.c_long) for name in ("channels", "outputs", "padding", "rectifies", "bfloat16")),
    )


class Scratch:
    """Memory for what a convolution needs meanwhile, shared by all of a network's, which run one after another."""

    def __init__(self) -> None:
        self._room = torch.empty(0)

    def room(self, values: int) -> torch.Tensor:
        """At least that many float32 of any content."""
        if len(self._room) < values:
            self._room = torch.empty(values)
        return self._room


class Filtering(nn.Module):
    """A convolution like `conv`, which `fits` the dtype, on one thread; rectified (ReLU) if wanted.

    `dtype` is what the products at the points are of, float32 or bfloat16; all else, their sums too, is float32.

    Raises:
        UserError: what computes it was not compiled for this processor.
    """

    def __init__(
        self, conv: nn.Conv2d, scratch: Scratch, *, rectifies: bool, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self._inputs, self._outputs = conv.in_channels, conv.out_channels
        self._size, self._stride, self._padding = conv.kernel_size[0], conv.stride[0], _padding(conv)
        self._rectifies = rectifies
        self._scratch = scratch
        self._library = library()
        to_points, filters_to_points, to_outputs = minimal_filtering(self._size, self._stride)
        self._to_points, self._to_outputs = to_points.float().contiguous(), to_outputs.float().contiguous()
        self._filters_to_points = torch.kron(filters_to_points, filters_to_points).float()
        wide = self._outputs + -self._outputs % int(self._library.vector_columns())
        self._filters = torch.empty(len(self._filters_to_points), wide * self._inputs, dtype=dtype)
        self._bias_O = torch.zeros(self._outputs)

    def load(self, weight: torch.Tensor, bias_O: torch.Tensor | None) -> None:
        """Carry filters [O, C, size, size] to the points.

        For each point [O / columns, values there, C, columns] with zeros beyond O, in bfloat16 [O / columns, values
        there, C / 2, columns, 2]. With stride 1 there is one value at a point (`minimal_filtering`).
        """
        weight = weight.contiguous()
        assert weight.dtype == torch.float32
        assert weight.shape == (self._outputs, self._inputs, self._size, self._size)
        self._library.carry_filters(
            self._size,
            self._stride,
            self._filters.dtype == torch.bfloat16,
            self._inputs,
            self._outputs,
            weight.data_ptr(),
            self._filters_to_points.data_ptr(),
            self._filters.data_ptr(),
        )
        if bias_O is not None:
            self._bias_O.copy_(bias_O)

    def forward(
        self,
        input: torch.Tensor,  # noqa: A002 - as nn.Conv2d, which may be called by name
        addend: torch.Tensor | float | None = None,
    ) -> torch.Tensor:
        """Float32 [B, C, height, width] to [B, O, height, width], in the input's layout, as `conv` does.

        `addend` is added to that before it is rectified; any that torch would add.
        """
        x = input.contiguous(memory_format=torch.channels_last)
        batch, channels, height, width = x.shape
        assert x.dtype == torch.float32
        assert channels == self._inputs
        sides = [(side + 2 * self._padding - self._size) // self._stride + 1 for side in (height, width)]
        if min(sides) < 1:
            raise RuntimeError(f"images of {height}x{width} are smaller than filters of {self._size}x{self._size}")
        y = x.new_empty(batch, *sides, self._outputs)
        alike, summand = (batch, self._outputs, *sides), None
        if isinstance(addend, torch.Tensor) and addend.shape == alike and addend.dtype == x.dtype:
            summand = addend.contiguous(memory_format=torch.channels_last)
        apart = addend is not None and summand is None
        call = _Convolution(
            x=x.data_ptr(),
            filters=self._filters.data_ptr(),
            bias=self._bias_O.data_ptr(),
            to_points=self._to_points.data_ptr(),
            to_outputs=self._to_outputs.data_ptr(),
            addend=None if summand is None else summand.data_ptr(),
            y=y.data_ptr(),
            size=self._size,
            stride=self._stride,
            batch=batch,
            height=height,
            width=width,
            channels=channels,
            outputs=self._outputs,
            padding=self._padding,
            rectifies=self._rectifies and not apart,
            bfloat16=self._filters.dtype == torch.bfloat16,
        )
        call.scratch = self._scratch.room(self._library.scratch_floats(ctypes.byref(call))).data_ptr()
        self._library.filter_images(ctypes.byref(call))
        made = y.permute(0, 3, 1, 2)
        if addend is not None and apart:
            made = torch.relu(made + addend) if self._rectifies else made + addend
        return made.contiguous() if input.is_contiguous() else made


def fits(conv: nn.Conv2d, dtype: torch.dtype) -> bool:
    """Whether a convolution is 3x3, or 5x5 of stride 1, ordinary otherwise, and of whole vectors of channels.

    A 3x3 one of stride 1 or 2. In bfloat16 only if it is 3x3.
    """
    size, stride = conv.kernel_size[0], conv.stride[0]
    if dtype == torch.bfloat16 and size != 3:
        return False
    plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    square = conv.kernel_size == (size, size) and conv.stride == (stride, stride) and (size, stride) in POINTS
    padded = conv.padding in {(_padding(conv),) * 2, "valid"}
    return plain and square and padded and conv.in_channels % VECTOR == 0 and conv.out_channels % VECTOR == 0


def _padding(conv: nn.Conv2d) -> int:
    return 0 if isinstance(conv.padding, str) else conv.padding[0]


def library_file() -> Path:
    """Where what hatch_build.py compiled for this processor lies, if it did."""
    capability = torch.backends.cpu.get_cpu_capability().lower()
    if capability == "avx512" and torch.cpu.get_capabilities()["avx512_bf16"]:
        file = Path(__file__).with_name("winograd-avx512_bf16.so")
        if file.exists():  # else an old compiler does not know these instructions: the other has all but them
            return file
    return Path(__file__).with_name(f"winograd-{capability if capability in {'avx512', 'avx2'} else 'default'}.so")


@cache
def library() -> ctypes.CDLL:
    """The compiled winograd.c.

    Raises:
        UserError: it is not there, of another processor, or of another source.
    """
    file = library_file()
    source = hashlib.sha256(Path(__file__).with_name("winograd.c").read_bytes()).hexdigest()
    try:
        loaded = ctypes.CDLL(str(file))
    except OSError as error:
        raise _unusable(file, str(error)) from None
    loaded.source_sha256.restype = ctypes.c_char_p
    if loaded.source_sha256().decode("ascii") != source:
        raise _unusable(file, "it was compiled from another winograd.c")
    loaded.vector_columns.restype = loaded.scratch_floats.restype = ctypes.c_long
    loaded.carry_filters.argtypes = [ctypes.c_long] * 5 + [ctypes.c_void_p] * 3
    loaded.carry_filters.restype = loaded.filter_images.restype = None
    return loaded


def _unusable(file: Path, why: str) -> UserError:
    return UserError(
        f"[scoring] paths with 'winograd' in their names need {file.name}, compiled when steelyard is installed: "
        f"{why}; install a C compiler (cc) and steelyard again (in a checkout: make clean setup), or set path = "
        "'folded'"
    )


def minimal_filtering(size: int, stride: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Matrices that carry inputs [n] and a filter [size] to values [n] at points, and products of these to outputs [4].

    For x [n], n = 3 stride + size, and f [size], with every value's products summed by point,
    outputs[(inputs x) * (filters f)] = [sum over j of f[j] x[stride i + j] for i in 0..3]. With stride 1 a value is a
    point's. With stride 2 the first five are the filter's two outer taps' at the points, the last four the middle
    tap's at all points but the fourth. Float64 [n, n], [n, size], [4, points].
    """
    points = POINTS[size, stride]
    if stride == 1:
        return _filtering(points, size)
    outer, middle = _filtering(points, 2), _filtering(points[:3], 1)
    to_points, filters = torch.zeros(9, 9, dtype=torch.float64), torch.zeros(9, 3, dtype=torch.float64)
    to_points[:5, 0::2], to_points[5:, 1::2] = outer[0], middle[0]
    filters[:5, 0::2], filters[5:, 1::2] = outer[1], middle[1]
    return to_points, filters, outer[2]


def _filtering(points: tuple[Fraction, ...], taps: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The matrices of `taps` with stride 1, at these points and infinity, which comes last.

    Evaluating polynomials at points, multiplying and interpolating (Toom and Cook's product) gives long products;
    filtering is the transposed of that, so the matrix of the inputs is the interpolation's.
    """

    def powers(count: int) -> torch.Tensor:
        finite = [[float(point**power) for power in range(count)] for point in points]
        return torch.tensor([*finite, [0.0] * (count - 1) + [1.0]], dtype=torch.float64)

    # Each point's factor may stand with the inputs or, divided by, with the filter.
    factors = [float(prod(point - other for other in points if other != point)) for point in points]
    scale = torch.tensor([*factors, 1.0], dtype=torch.float64)[:, None]
    return torch.linalg.inv(powers(TILE + taps - 1)).T * scale, powers(taps) / scale, powers(TILE).T
