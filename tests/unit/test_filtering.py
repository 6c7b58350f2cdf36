"""Minimal filtering: the tables' algebra, what winograd.c computes and touches, what is said where it is missing."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from steelyard.config import Shape
from steelyard.errors import UserError
from steelyard.models import FlatModel
from steelyard.scoring.paths import PATHS, filtering, make_path
from steelyard.scoring.paths.filtering import Filtering, Scratch, fits, minimal_filtering

SOURCE = Path(filtering.__file__).with_name("winograd.c")
BUILT = sorted(SOURCE.parent.glob("winograd-*.so"))
ORDER = ["winograd-default", "winograd-avx2", "winograd-avx512", "winograd-avx512_bf16"]


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (5, 1), (3, 2)])
def test_minimal_filtering_filters(size: int, stride: int) -> None:
    inputs, filters, outputs = minimal_filtering(size, stride)
    generator = torch.Generator().manual_seed(0)
    x, f = (torch.randn(n, generator=generator, dtype=torch.float64) for n in (3 * stride + size, size))
    expected = torch.stack([(x[stride * i : stride * i + size] * f).sum() for i in range(4)])
    products = (inputs @ x) * (filters @ f)
    if stride == 2:
        products[[0, 1, 2, 4]] += products[5:]
        products = products[:5]
    assert torch.allclose(outputs @ products, expected, rtol=0, atol=1e-11)


def test_it_is_built_for_this_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert filtering.library_file() in BUILT
    monkeypatch.setattr(filtering, "__file__", str(tmp_path / "filtering.py"))
    assert filtering.library_file().stem in ORDER[:3], "where a compiler knew no bfloat16, what it made is taken"


@pytest.fixture(params=BUILT, ids=lambda path: path.stem)
def built(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each library that this processor runs."""
    if ORDER.index(request.param.stem) > ORDER.index(filtering.library_file().stem):
        pytest.skip(f"this processor does not run {request.param.stem}")
    monkeypatch.setattr(filtering, "library_file", lambda: request.param)
    filtering.library.cache_clear()
    yield
    filtering.library.cache_clear()


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(
    ("size", "stride", "dtype", "most"),
    [
        (3, 1, torch.float32, 1.2e-6),
        (5, 1, torch.float32, 1.2e-5),
        (3, 2, torch.float32, 1.2e-6),
        (3, 1, torch.bfloat16, 2.5e-2),
        (3, 2, torch.bfloat16, 2.5e-2),
    ],
)
@pytest.mark.parametrize(
    ("height", "width", "padding", "batch"),
    [(1, 1, 2, 1), (4, 8, 1, 3), (9, 6, 0, 7), (11, 7, 2, 5), (7, 13, 0, 30), (5, 5, 4, 2), (19, 26, 1, 2)],
)
def test_it_convolves(
    size: int, stride: int, dtype: torch.dtype, most: float, height: int, width: int, padding: int, batch: int
) -> None:
    """Errors, root mean squares by the outputs' spread: up to 9e-7 and 9e-6 measured; of direct ones up to 5e-7.

    In bfloat16 up to 1.8e-2, where there are few outputs.
    """
    generator = torch.Generator().manual_seed(height)
    conv = nn.Conv2d(32, 48, size, stride, padding)
    assert fits(conv, dtype)
    assert conv.bias is not None
    scratch = Scratch()
    ours, rectified = (Filtering(conv, scratch, rectifies=rectifies, dtype=dtype) for rectifies in (False, True))
    with torch.inference_mode():
        conv.weight.normal_(generator=generator)
        x = torch.randn(batch, 32, height, width, generator=generator)
        exact = functional.conv2d(x.double(), conv.weight.double(), conv.bias.double(), stride, padding)
        for one in (ours, rectified):
            one.load(conv.weight, conv.bias)
        for images in (x, x[: batch // 2 + 1], x.contiguous(memory_format=torch.channels_last)):
            expected = exact[: len(images)]
            for made, wanted in ((ours(images), expected), (rectified(images), expected.relu())):
                error = (made - wanted).square().mean().sqrt() / exact.std()
                assert made.shape == wanted.shape
                assert error < most
                assert made.is_contiguous() or not images.is_contiguous(), "a view of it must go as conv's"
            assert made.min() >= 0, "the last one is rectified"
            last = torch.channels_last
            for addend in (expected, expected.contiguous(memory_format=last), expected[:1, :, :, :1], exact[:1, :1]):
                summed = (ours(images, addend=addend.float()), rectified(images, addend=addend.float()))
                alone = ours(images) + addend.float()
                for made, wanted in zip(summed, (alone, alone.relu()), strict=True):
                    assert (made - wanted).abs().max() < 1e-5 * exact.std(), "compilers may contract either otherwise"
            assert ours(images, addend=expected).dtype == torch.float64, "as torch would add"


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, -1])
@pytest.mark.parametrize("stride", [1, 2])
def test_what_is_no_number_stays_none(stride: int, dtype: torch.dtype, bits: int) -> None:
    conv = nn.Conv2d(16, 16, 3, stride, padding=1)
    rectified = Filtering(conv, Scratch(), rectifies=True, dtype=dtype)
    x = torch.zeros(1, 16, 4 * stride, 12 * stride)
    x.view(torch.int32)[0, 3, 0, 0] = bits
    assert x.isnan().sum() == 1
    with torch.inference_mode():
        rectified.load(conv.weight, conv.bias)
        made = rectified(x)
    alone = made[0, 0, :4, :4].isnan()
    assert alone.all() if stride == 1 else alone[0, 0], "its tile, or with stride 2 what sees it at the least"
    assert not made[..., 8:].isnan().any(), "a tile that does not see it"


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(16, 16, 3, stride=3),
        nn.Conv2d(16, 16, 3, stride=(1, 2)),
        nn.Conv2d(16, 16, 3, stride=(2, 1)),
        nn.Conv2d(16, 16, 5, stride=2),
        nn.Conv2d(16, 16, 3, dilation=2),
        nn.Conv2d(16, 16, 3, groups=2),
        nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(16, 16, 3, padding="same"),
        nn.Conv2d(16, 16, 3, padding=(0, 1)),
        nn.Conv2d(16, 16, (3, 5)),
        nn.Conv2d(16, 16, 1),
        nn.Conv2d(16, 16, 7),
        nn.Conv2d(3, 16, 3),
        nn.Conv2d(16, 24, 3),
    ],
)
def test_other_convolutions_do_not_fit(conv: nn.Conv2d) -> None:
    assert not fits(conv, torch.float32)
    assert fits(nn.Conv2d(16, 16, 3, padding="valid"), torch.float32)
    assert not fits(nn.Conv2d(16, 16, 5), torch.bfloat16)


def test_images_smaller_than_the_filter_are_refused_as_torch_does() -> None:
    for conv in (nn.Conv2d(16, 16, 5, padding=1), nn.Conv2d(16, 16, 3, stride=2)):
        ours = Filtering(conv, Scratch(), rectifies=False)
        for convolution in (conv, ours):
            with pytest.raises(RuntimeError, match=r"smaller than|size can't be greater"):
                convolution(input=torch.zeros(1, 16, 2, 9))


def test_a_library_of_another_source_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler, old = shutil.which("cc"), tmp_path / "winograd-old.so"
    assert compiler is not None, "the README asks for a C compiler"
    subprocess.run([compiler, "-shared", "-fPIC", "-std=gnu11", "-o", old, SOURCE], check=True, timeout=100)
    monkeypatch.setattr(filtering, "library_file", lambda: old)
    filtering.library.cache_clear()
    with pytest.raises(UserError, match=r"it was compiled from another winograd\.c; install"):
        filtering.library()


HARNESS = """
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "winograd.c"

static float *filled(long floats) { /* as pairs of bfloat16 numbers too */
    float *made = malloc(floats * sizeof(float)); /* to the byte: the sanitizer sees the first one beyond */
    for (long i = 0; i < floats; i++) made[i] = (float)(i % 7) - 3;
    return made;
}

int main(void) {
    long sides[] = {1, 4, 7, 14}, done = 0;
    /* Channels and outputs: half a group of them, one and a half, and so many that blocks of tiles are larger. */
    long channels[] = {16, 48, 16, 112}, outputs[] = {16, 16, 48, 48};
    struct { long size, stride, bfloat16; } kinds[] = {{3, 1, 0}, {5, 1, 0}, {3, 2, 0}, {3, 1, 1}, {3, 2, 1}};
    for (int k = 0; k < 5; k++)
        for (int h = 0; h < 4; h++)
            for (int w = 0; w < 4; w++)
                for (int n = 0; n < 4; n++)
                    for (long padding = 0; padding < 5; padding += 2) {
                        long size = kinds[k].size, stride = kinds[k].stride, bfloat16 = kinds[k].bfloat16;
                        if (sides[h] + 2 * padding < size || sides[w] + 2 * padding < size) continue;
                        struct convolution c = {.size = size, .stride = stride, .batch = 3, .height = sides[h],
                            .width = sides[w], .channels = channels[n], .outputs = outputs[n],
                            .padding = padding, .rectifies = (n + w) % 2, .bfloat16 = bfloat16};
                        long points = points_of(size, stride), values = span_of(size, stride) * span_of(size, stride);
                        long height = output_side(c.height, &c), width = output_side(c.width, &c);
                        float *given[] = {filled(c.batch * c.height * c.width * c.channels),
                            filled(values * wide(&c) * c.channels / (bfloat16 ? 2 : 1)),
                            filled(c.outputs), filled(values),
                            filled(TILE * points), filled(scratch_floats(&c)),
                            filled(c.batch * height * width * c.outputs),
                            filled(c.batch * height * width * c.outputs),
                            filled(c.outputs * c.channels * size * size), filled(values * size * size)};
                        c.x = given[0], c.filters = given[1], c.bias = given[2], c.to_points = given[3];
                        c.to_outputs = given[4], c.scratch = given[5], c.y = given[6];
                        if (h % 2) c.addend = given[7];
                        carry_filters(size, stride, bfloat16, c.channels, c.outputs, given[8], given[9],
                                      (char *)given[1]);
                        for (long i = 0; i < scratch_floats(&c); i++) given[5][i] = NAN; /* must not reach y */
                        filter_images(&c);
                        for (long i = 0; i < c.batch * height * width * c.outputs; i++)
                            if (isnan(c.y[i])) return 1;
                        for (int i = 0; i < 10; i++) free(given[i]);
                        done++;
                    }
    printf("%ld", done);
    return 0;
}
"""


FLAGS = {
    ORDER[0]: [],
    ORDER[1]: ["-mavx2", "-mfma"],
    ORDER[2]: ["-mavx512f", "-mfma"],
    ORDER[3]: ["-mavx512f", "-mavx512bf16", "-mfma"],
}
# Vectors of 8 floats, and of 16 where this processor has them: kinds of one width touch the same memory.
SANITIZED = sorted({ORDER[0], filtering.library_file().stem})


@pytest.fixture(scope="module")
def harnesses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """The harness under way for each width of vectors, compiled first; they share the cores."""
    compiler = shutil.which("cc")
    assert compiler is not None, "the README asks for a C compiler"
    folder = tmp_path_factory.mktemp("harness")
    (folder / "harness.c").write_text(HARNESS, encoding="ascii")
    sanitizers = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-sanitize=alignment"
    started = {}
    for stem in SANITIZED:
        build = [compiler, "-O1", "-g1", "-std=gnu11", *FLAGS[stem], *sanitizers.split(), f"-I{SOURCE.parent}"]
        command = f"{shlex.join([*build, '-o', stem, 'harness.c'])} 2>&1 && exec ./{stem}"
        started[stem] = subprocess.Popen(
            ["sh", "-c", command], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("stem", SANITIZED)
def test_no_byte_beyond_its_memory_is_touched(stem: str, harnesses: dict[str, subprocess.Popen[str]]) -> None:
    """By the compiler's sanitizers, in a program of its own, every buffer as large as the documentation says."""
    said, complaint = harnesses[stem].communicate(timeout=100)
    assert (harnesses[stem].returncode, complaint) == (0, ""), said
    assert int(said.split()[-1]) > 100, "behind what the compiler may have noted"


def test_without_a_compiled_part_the_paths_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filtering, "library_file", lambda: tmp_path / "winograd-avx2.so")
    filtering.library.cache_clear()
    model = FlatModel("cnn28_large", Shape(channels=1, height=28, width=28, classes=10))
    residual = FlatModel("resnet18", Shape(channels=3, height=32, width=32, classes=10))
    try:
        for path, needs in (("winograd", model), ("im2col_winograd", model), ("winograd_bf16", residual)):
            with pytest.raises(UserError, match=r"winograd-avx2.so.*install a C compiler \(cc\) and steelyard again"):
                make_path(path, needs, [])
        for path in (path for path, kind in PATHS.items() if "cpu" in kind.devices and "winograd" not in path):
            make_path(path, model, [])  # needs none: what made a run is told by the path's name (report/origin.py)
    finally:
        filtering.library.cache_clear()
