"""The winograd path: the folded graph, with convolutions as matrix products, 3x3 ones with a quarter of the products.

Winograd's minimal filtering makes 4x4 outputs of a 3x3 convolution from 36 products a pair of channels, not from 144:
tiles of 6x6 inputs and the filter are carried to six points (a polynomial's values), multiplied there and carried back
(Lavin & Gray 2015, arXiv 1509.09308). Its rounding error hangs on the points; with 0, +-5/8, +-3/2 and infinity it is
two to five times a direct convolution's. Other convolutions multiply patches that are copied out. The batch goes
through the network in parts that stay in a core's cache (`pieces`), else the copies would cost what the fewer products
save.

Legend: B examples, C input and O output channels, T tiles or patches of a batch, P 36 pairs of points.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import prod

import torch
from torch import fx, nn

from steelyard.errors import UserError
from steelyard.models import FlatModel
from steelyard.scoring.paths.folded import Folded
from steelyard.scoring.paths.pieces import Piece, Sizes, cut

TILE, FILTER = 4, 3
REACH = TILE + FILTER - 1  # inputs that a row of a tile's outputs needs, and points that it takes
POINTS = (Fraction(0), Fraction(5, 8), Fraction(-5, 8), Fraction(3, 2), Fraction(-3, 2))  # and infinity
TOLERANCE = 1e-4  # of the largest logit, between examples in parts and at once; rounding stays far below
LEAST_CHANNELS = 16  # below it, carrying tiles to the points costs more than the products that it saves


class Winograd(Folded):
    """Logits of any model that torch.fx can trace and that treats examples independently, in float32.

    Args:
        model: the network.
        images: float32 [B, channels, height, width] of each inner batch.

    Raises:
        UserError: the model's forward pass can't be traced, or an example's logits depend on what is beside it.
    """

    def __init__(self, model: FlatModel, images: Sequence[torch.Tensor]) -> None:
        super().__init__(model, images)
        self._convolutions: list[Product] = []
        self._pieces: list[Piece] = []
        if not images:  # there is nothing to compute, and nothing to tell sizes by
            return
        first = self._images[0]
        two = first[[0, 1 % len(first)]].contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            self._invent_weights()
            expected = self._graph(two)
            sizes = Sizes(self._graph, two)
            self._convolutions = _replace(self._graph, Scratch())
            self._pieces = cut(self._graph, sizes)
            for convolution in self._convolutions:
                convolution.load()
            self._refuse_unless_independent(type(model.module).__name__, two, expected)

    def _load(self) -> None:
        super()._load()
        for convolution in self._convolutions:
            convolution.load()

    def _invent_weights(self) -> None:
        """Weights of the usual size, so that the network computes something: the model's may not be there yet."""
        generator = torch.Generator().manual_seed(0)
        filled = [*(t for mine, *_ in self._pairs for t in mine.parameters()), *(mine for mine, _ in self._others)]
        for tensor in filled:
            if tensor.ndim > 1:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5)
            elif tensor.is_floating_point():  # a scale, a shift, a mean or a variance
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))

    def _through(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of one inner batch; the next may overwrite them."""
        return _one_after_another(self._pieces, images)

    def _refuse_unless_independent(self, name: str, two: torch.Tensor, expected: torch.Tensor) -> None:
        """Compare two examples one by one with both at once, as the network itself does them."""
        try:
            got = _one_after_another([Piece(piece.module, 1) for piece in self._pieces], two)
            fits = torch.allclose(got, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))
        except (RuntimeError, IndexError):  # a shape that only the whole batch has
            fits = False
        if not fits:
            raise UserError(
                f"[scoring] path 'winograd' takes a batch in parts, and fits models whose logits of an example do not "
                f"depend on the others; {name} gives other logits in parts; set path = 'folded'"
            )


def _one_after_another(pieces: Sequence[Piece], images: torch.Tensor) -> torch.Tensor:
    h = images
    for piece in pieces:
        h = piece(h)
    return h


class Scratch:
    """Memory for what a convolution needs meanwhile, shared by all of a network's, which run one after another."""

    def __init__(self) -> None:
        self._rooms: dict[str, torch.Tensor] = {}

    def room(self, name: str, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """A tensor of that shape, of any content; the one that had the name before it is gone."""
        values = prod(shape)
        if name not in self._rooms or self._rooms[name].numel() < values:
            self._rooms[name] = like.new_empty(values)
        return self._rooms[name][:values].view(shape)


class Product(nn.Module):
    """A convolution that is computed as a matrix product, and the ReLU behind it where there is one."""

    def __init__(self, conv: nn.Conv2d, scratch: Scratch, *, rectifies: bool) -> None:
        super().__init__()
        self.conv = conv
        self.rectifies = rectifies
        self.filters = conv.weight.new_empty(0)
        self._scratch = scratch

    def load(self) -> None:
        """Read the present filters."""
        raise NotImplementedError

    def _padded(self, x: torch.Tensor, above: int, left: int, height: int, width: int) -> torch.Tensor:
        """The input [B, height, width, C] with zeros around it."""
        if (height, width) == x.shape[2:]:
            return x.permute(0, 2, 3, 1)
        padded = self._scratch.room("padded", (len(x), height, width, x.shape[1]), x)
        for edge in (
            padded[:, :above],
            padded[:, above + x.shape[2] :],
            padded[:, :, :left],
            padded[:, :, left + x.shape[3] :],
        ):
            edge.zero_()
        padded[:, above : above + x.shape[2], left : left + x.shape[3]].copy_(x.permute(0, 2, 3, 1))
        return padded

    def _finish(self, y: torch.Tensor) -> torch.Tensor:
        if self.rectifies:
            y.relu_()
        return y.permute(0, 3, 1, 2)


class Patches(Product):
    """Any ordinary convolution: its inputs' patches [T, height x width x C] times its filters."""

    def load(self) -> None:
        """Read the present filters: [height x width x C, O]."""
        self.filters = self.conv.weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, height, width] to [B, O, height, width], channels last."""
        (rows, columns), (down, right), (above, left) = self.conv.kernel_size, self.conv.stride, _padding(self.conv)
        height, width = x.shape[2] + 2 * above, x.shape[3] + 2 * left
        padded = self._padded(x, above, left, height, width)
        grid = (len(x), (height - rows) // down + 1, (width - columns) // right + 1)
        b, h, w, c = padded.stride()
        windows = padded.as_strided((*grid, rows, columns, x.shape[1]), (b, h * down, w * right, h, w, c))
        patches = self._scratch.room("first", windows.shape, x)
        patches.copy_(windows)
        y = (patches.view(prod(grid), -1) @ self.filters).view(*grid, -1)
        if self.conv.bias is not None:
            y += self.conv.bias
        return self._finish(y)


class Tiles(Product):
    """A 3x3 convolution of stride 1 that keeps the size, by Winograd's minimal filtering in both directions."""

    def __init__(self, conv: nn.Conv2d, scratch: Scratch, *, rectifies: bool) -> None:
        super().__init__(conv, scratch, rectifies=rectifies)
        self._inputs_to_points, self._filters_to_points, self._points_to_outputs = (
            torch.kron(one, one).to(conv.weight) for one in minimal_filtering()
        )

    def load(self) -> None:
        """Carry the present filters to the points: [P, C, O]."""
        weight = self.conv.weight.permute(2, 3, 1, 0)
        self.filters = (self._filters_to_points @ weight.reshape(FILTER**2, -1)).view(-1, *weight.shape[2:])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, height, width] to [B, O, height, width], channels last."""
        batch, channels, height, width = x.shape
        down, right, outputs = -(-height // TILE), -(-width // TILE), self.filters.shape[2]
        padded = self._padded(x, 1, 1, down * TILE + 2, right * TILE + 2)
        b, h, w, c = padded.stride()
        shape = (REACH, REACH, batch, down, right, channels)
        tiles = self._scratch.room("first", shape, x)
        tiles.copy_(padded.as_strided(shape, (h, w, b, TILE * h, TILE * w, c)))
        at_points_PTC = self._scratch.room("second", (REACH**2, batch * down * right, channels), x)
        torch.mm(self._inputs_to_points, tiles.view(REACH**2, -1), out=at_points_PTC.view(REACH**2, -1))
        products_PTO = self._scratch.room("first", (*at_points_PTC.shape[:2], outputs), x)
        torch.bmm(at_points_PTC, self.filters, out=products_PTO)
        made = self._scratch.room("second", (TILE, TILE, batch, down, right, outputs), x)
        torch.mm(self._points_to_outputs, products_PTO.view(REACH**2, -1), out=made.view(TILE**2, -1))
        y = x.new_empty(batch, down, TILE, right, TILE, outputs)
        in_place = made.permute(2, 3, 0, 4, 1, 5)
        if self.conv.bias is None:
            y.copy_(in_place)
        else:
            torch.add(in_place, self.conv.bias, out=y)
        whole = y.view(batch, down * TILE, right * TILE, outputs)[:, :height, :width]
        return self._finish(whole.contiguous())  # a crop with gaps could not be viewed in other shapes


def minimal_filtering() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Matrices that carry inputs [6] and a filter [3] to the points, and products at the points to outputs [4].

    For x [6] and f [3], outputs[(inputs x) * (filters f)] = [sum over j of f[j] x[i + j] for i in 0..3]. Evaluating
    polynomials at points, multiplying and interpolating (Toom and Cook's product) gives long products; filtering is the
    transposed of that, so the matrix of the inputs is the interpolation's. Float64 [6, 6], [6, 3], [4, 6].
    """

    def powers(count: int) -> torch.Tensor:
        finite = [[float(point**power) for power in range(count)] for point in POINTS]
        return torch.tensor([*finite, [0.0] * (count - 1) + [1.0]], dtype=torch.float64)

    # Each point's factor may stand with the inputs or, divided by, with the filter.
    factors = [float(prod(point - other for other in POINTS if other != point)) for point in POINTS]
    scale = torch.tensor([*factors, 1.0], dtype=torch.float64)[:, None]
    return torch.linalg.inv(powers(REACH)).T * scale, powers(FILTER) / scale, powers(TILE).T


def _replace(graph: fx.GraphModule, scratch: Scratch) -> list[Product]:
    """Put ours in every ordinary convolution's place, with the ReLU behind it; returns them."""
    # By the convolution's name. Ours has a new one: the network may read the old one's weights itself.
    made: dict[str, Product] = {}
    modules = dict(graph.named_modules())
    calls = [node for node in graph.graph.nodes if node.op == "call_module"]
    for node in calls:
        name = str(node.target)
        conv = modules[name]
        if name in made or not isinstance(conv, nn.Conv2d) or not _ordinary(conv):
            continue
        alone = len(node.users) == 1 and sum(str(other.target) == name for other in calls) == 1
        behind = next(iter(node.users)) if alone else None
        rectifies = behind is not None and _rectifies(behind, modules)
        made[name] = (Tiles if _tiles(conv) else Patches)(conv, scratch, rectifies=rectifies)
        ours = f"{name}_as_product".replace(".", "_")
        graph.add_submodule(ours, made[name])
        modules[ours] = made[name]
        for call in calls:
            if str(call.target) == name:
                call.target = ours
        if rectifies and behind is not None:
            behind.replace_all_uses_with(node)
            graph.graph.erase_node(behind)
    graph.recompile()
    return list(made.values())


def _rectifies(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], nn.ReLU)
    return node.op == "call_function" and node.target in {torch.relu, nn.functional.relu}


def _ordinary(conv: nn.Conv2d) -> bool:
    return conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros" and conv.padding != "same"


def _tiles(conv: nn.Conv2d) -> bool:
    shape = (conv.kernel_size, conv.stride, _padding(conv))
    return shape == ((FILTER, FILTER), (1, 1), (1, 1)) and conv.in_channels >= LEAST_CHANNELS


def _padding(conv: nn.Conv2d) -> tuple[int, int]:
    if isinstance(conv.padding, str):  # "valid": `_ordinary` leaves "same" out
        return (0, 0)
    above, left = conv.padding
    return above, left
