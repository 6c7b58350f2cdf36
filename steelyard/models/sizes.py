"""Which images a network takes. It knows no network."""

from __future__ import annotations

from steelyard.config import Shape
from steelyard.errors import UserError


def require_side(name: str, shape: Shape, least: int) -> None:
    """Refuse images on which a network's last normalization would see one pixel: a batch of one has no variance then.

    Raises:
        UserError: height or width is below `least`.
    """
    if min(shape.height, shape.width) < least:
        raise UserError(
            f"[model] {name}: images of at least {least}x{least} pixels expected, got {shape.height}x{shape.width}; "
            f'name = "" picks a small CNN'
        )
