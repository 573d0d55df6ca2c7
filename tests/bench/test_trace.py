from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function

from batchnst.bench.peaks import DEVICES
from batchnst.bench.trace import Recorder, pretended_gpu, trace
from batchnst.painting.named_weights import load_weights
from batchnst.painting.painter import load_backbone
from batchnst.recipe import Recipe
from batchnst.transfer.graph import EAGER_CALLS
from batchnst.transfer.losses import add_product_, gram_matrix
from batchnst.transfer.stylize import stylize
from tests.helpers import batchnst, whole

B, C, H, W = 2, 8, 12, 16
BF16, INT64 = 2, 8
"""Bytes of a value."""


@pytest.fixture(scope="module")
def counted() -> dict[str, Any]:
    return trace(Recipe())


@pytest.fixture(scope="module")
def bounded() -> dict[str, Any]:
    return trace(Recipe(), "h100")


@contextmanager
def recording(scope: str = "objective") -> Iterator[Recorder]:
    recorder = Recorder()
    with recorder, pretended_gpu(recorder), record_function(scope):
        yield recorder


def tensor(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A tensor without values, like the network's features."""
    made = torch.empty(shape, dtype=dtype, device="meta")
    return made.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else made


def moved(recorder: Recorder, category: str) -> list[int]:
    """Bytes of each kernel of a category."""
    return [kernel.bytes for found, kernel in recorder.outside if found == category]


def flops(recorder: Recorder) -> float:
    return sum(kernel.flops for _, kernel in recorder.outside)


def test_a_convolution_with_relu_and_pooling_moves_what_is_counted_by_hand() -> None:
    pictures, weight, bias = tensor(B, 3, H, W).requires_grad_(), tensor(C, 3, 3, 3), tensor(C)
    given, features, kernel = (BF16 * n for n in (B * 3 * H * W, B * C * H * W, C * 3 * 9))
    with recording() as forward:
        pooled = F.max_pool2d(F.relu(F.conv2d(pictures, weight, bias, padding=1), inplace=True), 2)
    small, indices = features // 4, INT64 * B * C * H * W // 4
    assert moved(forward, "convolutions") == [given + kernel + features]
    assert moved(forward, "elementwise") == [
        2 * features + BF16 * C,  # the bias
        2 * features,  # ReLU
        features + small + indices,  # pooling
    ]
    assert flops(forward) == 2 * B * C * H * W * 3 * 9
    gradient = tensor(B, C, H // 2, W // 2)
    with recording() as backward:
        torch.autograd.grad(pooled, pictures, gradient)
    assert moved(backward, "elementwise") == [
        features,  # zeros
        small + indices + features,  # pooling
        3 * features,  # ReLU, from its output
    ]
    assert moved(backward, "convolutions") == [features + kernel + given]
    assert flops(backward) == flops(forward)


def test_a_convolution_with_its_relu_in_one_kernel_moves_what_is_counted_by_hand() -> None:
    pictures, weight, bias = tensor(B, 3, H, W), tensor(C, 3, 3, 3), tensor(C)
    with recording() as recorder:
        features = torch.cudnn_convolution_relu(pictures, weight, bias, [1, 1], [1, 1], [1, 1], 1)
    assert features.is_contiguous(memory_format=torch.channels_last)
    assert moved(recorder, "convolutions") == [BF16 * sum(t.numel() for t in (pictures, weight, bias, features))]
    assert moved(recorder, "elementwise") == []
    assert flops(recorder) == 2 * B * C * H * W * 3 * 9


def test_a_gram_matrix_moves_what_is_counted_by_hand() -> None:
    features = tensor(B, C, H, W)
    read, matrix = BF16 * B * C * H * W, 4 * B * C * C
    with recording() as forward:
        gram = gram_matrix(features)
    assert moved(forward, "grams") == [read + matrix, 2 * matrix]  # the product, with itself; the division
    assert moved(forward, "elementwise") == []
    assert flops(forward) == 2 * B * H * W * C * C
    with recording() as backward:
        add_product_(tensor(B, C, H, W), features, gram.bfloat16())
    assert flops(backward) == flops(forward)
    half = matrix // 2
    assert moved(backward, "grams") == [matrix + half, 3 * read + half]  # the product is added in place


@pytest.mark.parametrize("optimizer", ["bmm", "baddbmm_"])
def test_products_outside_the_objective_are_the_optimizers(optimizer: str) -> None:
    matrix = tensor(B, C, C)
    with recording("optimizer") as recorder:
        torch.bmm(matrix, matrix) if optimizer == "bmm" else tensor(B, C, C).baddbmm_(matrix, matrix)
    written = 1 if optimizer == "bmm" else 2
    assert moved(recorder, "optimizer") == [BF16 * B * C * C * (1 + written)]
    assert flops(recorder) == 2 * B * C**3


def test_views_and_allocations_cost_nothing_and_only_what_is_touched_counts() -> None:
    picture = tensor(B, C, H, W, dtype=torch.float32)
    row = 4 * B * C * W
    with recording() as recorder:
        rows = picture[:, :, 0]
        picture.permute(0, 2, 3, 1).flatten(1, 2).mT.detach()
        torch.empty_like(picture)
        rows.add_(1)
        rows.copy_(picture[:, :, 1])
        rows.zero_()
        picture[0, 0, 0, 0].expand(B, C, W) + rows
        picture[:, 0, 0][torch.zeros(1, dtype=torch.int64, device="meta")]
        torch.zeros_like(rows)
    assert moved(recorder, "elementwise") == [2 * row, 2 * row, row, 4 + 2 * row, 8, 8 + 2 * 4 * W, row]


def test_a_fourier_transform_is_a_pass_for_each_dimension() -> None:
    picture = tensor(B, 3, H, W, dtype=torch.float32).contiguous()
    values, spectrum = 4 * B * 3 * H * W, 8 * B * 3 * H * (W // 2 + 1)
    with recording("optimizer") as recorder:
        torch.fft.irfft2(torch.fft.rfft2(picture))
    passes = [values + spectrum, 2 * spectrum, *[2 * spectrum] * 2, values + spectrum]
    assert moved(recorder, "optimizer") == [*passes, 2 * values]  # the division by H·W
    with recording("optimizer") as recorder:
        torch.fft.irfft2(torch.fft.rfft2(picture), norm="forward")
    assert moved(recorder, "optimizer") == passes


def test_kernels_of_a_graph_count_when_it_is_replayed() -> None:
    with recording() as recorder:
        picture, graph = tensor(B, C, H, W), torch.cuda.CUDAGraph()
        recorder.clear()
        with torch.cuda.graph(graph):
            copy = picture + 1
        assert (recorder.inside, recorder.outside) == ([], [])
        graph.replay()
        graph.replay()
        copy.clone()
    assert [len(recorder.inside), len(recorder.outside)] == [2, 1]
    assert recorder.inside[0] == recorder.inside[1]


@torch.library.custom_op("batchnst_tests::double_", mutates_args=["values"])
def double_(values: Tensor, factor: Tensor) -> None:
    values.mul_(2 * factor)


@double_.register_fake
def _(values: Tensor, factor: Tensor) -> None:
    pass


def test_an_operation_of_ones_own_is_one_kernel() -> None:
    features, factor = tensor(B, C, H, W), tensor(B)
    with recording() as recorder:
        double_(features, factor)
    assert moved(recorder, "elementwise") == [BF16 * (2 * B * C * H * W + B)]


def test_a_step_has_every_count(counted: dict[str, Any]) -> None:
    assert (counted["width"], counted["height"], counted["batch"]) == (512, 384, 21)
    parts = counted["bytes_per_pixel"]
    assert set(parts) == {"convolutions", "elementwise", "grams", "optimizer", "outside_convolutions"}
    assert all(count > 0 for count in parts.values())
    outside = parts["elementwise"] + parts["grams"] + parts["optimizer"]
    assert parts["outside_convolutions"] == pytest.approx(outside, abs=0.2)
    assert 0 < counted["launches"]["outside_graphs"] < counted["launches"]["all"]


def test_a_step_moves_and_starts_little(counted: dict[str, Any]) -> None:
    assert counted["bytes_per_pixel"]["outside_convolutions"] <= 6000
    assert counted["launches"]["outside_graphs"] <= 60


def test_a_step_of_pictures_of_several_sizes_moves_and_starts_little() -> None:
    sizes = [(height, 512) for height in (384, 341, 360)] * 7
    recipe = Recipe.from_settings({"size": 512, "min_size": 512, "precision": "bf16"})
    recorder = Recorder()
    with recorder, pretended_gpu(recorder):
        contents = [torch.empty(1, 3, *size, device="meta") for size in sizes]
        network = partial(load_backbone, weights=load_weights(*recipe.network), device=torch.device("meta"))
        painting = stylize(contents, [whole(contents[0])] * len(sizes), recipe, network)
        for _ in range(EAGER_CALLS + 1):
            next(painting)
        recorder.clear()
        next(painting)
    bytes_outside = sum(kernel.bytes for name, kernel in recorder.inside + recorder.outside if name != "convolutions")
    assert bytes_outside / (21 * 384 * 512) <= 6000
    assert 0 < len(recorder.outside) <= 60 < len(recorder.inside)


def test_the_convolutions_of_a_step_are_counted_as_by_hand(counted: dict[str, Any]) -> None:
    width, height = counted["width"], counted["height"]
    positions, channels, moved, weights = width * height, 3, 0, 0
    convolutions = grams = 0
    for convs, out in ((2, 64), (2, 128), (4, 256), (4, 512), (1, 512)):
        grams += 2 * 2 * positions * out**2  # forward and backward
        for _ in range(convs):
            convolutions += 2 * 2 * 9 * positions * channels * out
            moved += 2 * BF16 * positions * (channels + out)
            weights += 2 * BF16 * 9 * channels * out
            channels = out
        positions //= 4
    pixels = width * height
    assert counted["bytes_per_pixel"]["convolutions"] == pytest.approx(
        moved / pixels + weights / pixels / counted["batch"], abs=0.1
    )
    assert counted["flops_per_pixel"] == pytest.approx((convolutions + grams) / pixels, rel=0.002)


def test_the_bound_is_the_longer_of_computing_and_moving(bounded: dict[str, Any]) -> None:
    peaks, pixels = DEVICES["h100"], bounded["batch"] * bounded["width"] * bounded["height"]
    bounds, parts = bounded["bound_ms_by_category"], bounded["bytes_per_pixel"]
    assert bounded["bound_ms_per_step"] == pytest.approx(sum(bounds.values()), abs=0.002)
    moving = 1000 * parts["elementwise"] * pixels / peaks.bytes
    assert bounds["elementwise"] == pytest.approx(moving, abs=0.001)
    assert bounds["convolutions"] > 1000 * parts["convolutions"] * pixels / peaks.bytes
    assert peaks.bf16 is not None
    assert bounds["convolutions"] < 1000 * bounded["flops_per_pixel"] * pixels / peaks.bf16


def test_counts_are_the_same_every_time_and_with_a_device(counted: dict[str, Any], bounded: dict[str, Any]) -> None:
    assert bounded == counted | {
        name: bounded[name] for name in ("device", "bound_ms_per_step", "bound_ms_by_category")
    }


def test_the_command_prints_the_counts_and_nothing_else_also_for_a_gpu_without_bf16(counted: dict[str, Any]) -> None:
    result = batchnst("bench", "--trace", "--device", "t4")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    printed = json.loads(result.stdout)
    assert (printed["precision"], counted["precision"]) == ("fp32", "bf16")
    convolutions = printed["bytes_per_pixel"]["convolutions"]
    assert convolutions == pytest.approx(2 * counted["bytes_per_pixel"]["convolutions"], rel=0.001)
    assert printed["flops_per_pixel"] == counted["flops_per_pixel"]
    assert printed["bound_ms_per_step"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trace", "--device", "h1000"], "--device h1000: not known; expected one of a10, a100"),
        (["--device", "h100"], "--device needs --trace"),
        (["--trace", "--against", "textbook"], "takes no pictures and no --against"),
        (["--trace", "a.png", "b.png"], "takes no pictures and no --against"),
    ],
)
def test_a_wrong_request_is_one_line(arguments: list[str], message: str) -> None:
    result = batchnst("bench", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
