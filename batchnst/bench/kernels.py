"""The kernels that torch starts on an NVIDIA GPU for an operation, and the bytes and FLOPs of each.

Counted by these rules:

- A kernel reads each distinct input once and writes its output once. Of a view it touches the view alone; a dimension
  that was expanded counts once. What is changed in place is read and written.
- Views and allocations cost nothing. Any other operation is one kernel, but for those in `_RULES`, which follow
  PyTorch's sources (aten/src/ATen/native/cuda).
- FLOPs are those of convolutions, matrix products and Fourier transforms.

Not counted: scratch memory, copies into other layouts inside a library, and what caches save or lose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten


class Kind(Enum):
    """Kinds of computation of a kernel."""

    CONVOLUTION = "convolution"
    PRODUCT = "product"  # of matrices
    OTHER = "other"


@dataclass(frozen=True)
class Kernel:
    """One kernel: bytes that it reads and writes, FLOPs, and the largest tensor that it touches."""

    kind: Kind
    bytes: int
    largest: Tensor
    flops: float = 0.0


def kernels(operation: OpOverload, arguments: Sequence[Any], options: Mapping[str, Any], result: Any) -> list[Kernel]:
    """Return the kernels of `operation` on `arguments` and keyword `options`, which returned `result`."""
    inputs, outputs = tensors_in((arguments, options)), tensors_in(result)
    if operation.overloadpacket in _ALLOCATIONS:
        return []
    if rule := _RULES.get(operation.overloadpacket):
        return rule(arguments, result)
    written = _written(operation, arguments, options)
    known = {storage_of(tensor) for tensor in inputs}
    new = [tensor for tensor in outputs if storage_of(tensor) not in known]
    if not written and not new:
        return []
    only_written = written if _overwrites(operation) else []
    read = [tensor for tensor in inputs if not any(tensor is target for target in only_written)]
    if formula := _PRODUCTS.get(operation.overloadpacket):
        flops = float(formula(*arguments, **options, out_val=result))
        return [_kernel(read, written + new, Kind.PRODUCT, flops)]
    return [_kernel(read, written + new)]


def _kernel(read: Iterable[Tensor], written: Iterable[Tensor], kind: Kind = Kind.OTHER, flops: float = 0.0) -> Kernel:
    distinct = {_region(tensor): tensor for tensor in read}
    tensors = [*distinct.values(), *written]
    return Kernel(kind, sum(map(_bytes, tensors)), max(tensors, key=_bytes), flops)


def tensors_in(tree: Any) -> list[Tensor]:
    """Return the tensors in nested tuples, lists and dicts."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def storage_of(tensor: Tensor) -> int:
    """Return a key of the memory under `tensor`, the same for all its views, valid as long as it lives."""
    return int(tensor.untyped_storage()._cdata)


def _extent(tensor: Tensor) -> list[tuple[int, int]]:
    """The sizes and strides of a tensor in memory, without expanded dimensions."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return sorted((size, stride) for size, stride in pairs if stride and size != 1)


def _region(tensor: Tensor) -> tuple[object, ...]:
    """A key that two tensors share if they are the same values in memory, in any order of dimensions."""
    return storage_of(tensor), tensor.storage_offset(), tensor.dtype, *_extent(tensor)


def _bytes(tensor: Tensor) -> int:
    """Bytes of memory under a tensor."""
    return math.prod(size for size, _ in _extent(tensor)) * tensor.itemsize if tensor.numel() else 0


def _written(operation: OpOverload, arguments: Sequence[Any], options: Mapping[str, Any]) -> list[Tensor]:
    """The arguments that `operation` writes to."""
    written = []
    for i, argument in enumerate(operation._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written += tensors_in(arguments[i] if i < len(arguments) else options.get(argument.name))
    return written


def _overwrites(operation: OpOverload) -> bool:
    """True if `operation` does not read what it writes to."""
    has_out = any(argument.is_out for argument in operation._schema.arguments)
    return has_out or operation.overloadpacket in (aten.copy_, aten.fill_, aten.zero_)


def _convolution(arguments: Sequence[Any], result: Tensor) -> list[Kernel]:
    """A convolution of cuDNN, and PyTorch's own kernel that adds the bias."""
    pictures, weight, bias = arguments[:3]
    flops = float(flop_registry[aten.convolution](*arguments, out_val=result))
    convolution = _kernel([pictures, weight], [result], Kind.CONVOLUTION, flops)
    return [convolution] if bias is None else [convolution, _kernel([result, bias], [result])]


def _convolution_relu(arguments: Sequence[Any], result: Tensor) -> list[Kernel]:
    """One kernel of cuDNN, which adds the bias and applies the ReLU before it writes."""
    pictures, weight, bias, *window = arguments
    stride, padding, dilation, groups = window
    whole = pictures, weight, bias, stride, padding, dilation, False, [0, 0], groups
    flops = float(flop_registry[aten.convolution](*whole, out_val=result))
    return [_kernel([pictures, weight, bias], [result], Kind.CONVOLUTION, flops)]


def _convolution_backward(arguments: Sequence[Any], result: Sequence[Tensor | None]) -> list[Kernel]:
    """The derivative for the input, which needs no input; the weights are frozen."""
    gradient, _, weight = arguments[:3]
    (derivative,) = tensors_in(result)
    flops = float(flop_registry[aten.convolution_backward](*arguments, out_val=result))
    return [_kernel([gradient, weight], [derivative], Kind.CONVOLUTION, flops)]


def _max_pool_backward(arguments: Sequence[Any], result: Tensor) -> list[Kernel]:
    """Zeros, and a kernel that reads the gradient and the int64 indices, not the features."""
    return [_kernel([], [result]), _kernel([arguments[0], arguments[-1]], [result])]


def _average_pool_backward(arguments: Sequence[Any], result: Tensor) -> list[Kernel]:
    """A kernel that reads the gradient, not the features."""
    return [_kernel([arguments[0]], [result])]


def _fill(_: Sequence[Any], result: Tensor) -> list[Kernel]:
    """A constant; the first argument, if any, lends its shape or type alone."""
    return [_kernel([], [result])]


def _zeros_and_copy(arguments: Sequence[Any], result: Tensor) -> list[Kernel]:
    """A tensor of constants, and a copy into a part of it."""
    part = arguments[0]
    return [_kernel([], [result]), _kernel([part], [part])]


def _read_part(arguments: Sequence[Any], result: Tensor) -> list[Kernel]:
    """As many values of the first argument as are returned, chosen by indices."""
    return [_kernel(tensors_in(arguments[1:]), [result, result])]


def _write_part(arguments: Sequence[Any], result: Tensor) -> list[Kernel]:
    """The values, the last argument, are written where the indices say, into the first argument."""
    return [_kernel(tensors_in(arguments[1:]), tensors_in(arguments)[-1:])]


def _copy_and_write_part(arguments: Sequence[Any], result: Tensor) -> list[Kernel]:
    return [_kernel(arguments[:1], [result]), *_write_part(arguments, result)]


def _real_to_complex(arguments: Sequence[Any], result: Tensor) -> list[Kernel]:
    """One pass of cuFFT for each dimension."""
    signal, dimensions = arguments[:2]
    flops = _fft_flops(signal, dimensions)
    first = _kernel([signal], [result], flops=flops)
    return [first, *[_kernel([result], [result])] * (len(dimensions) - 1)]


def _complex_to_real(arguments: Sequence[Any], result: Tensor) -> list[Kernel]:
    """A copy, which cuFFT may overwrite; one pass for each dimension; the division by the number of values, if any."""
    spectrum, dimensions, normalization = arguments[:3]
    copies = [_kernel([spectrum], [spectrum])] * len(dimensions)
    last = _kernel([spectrum], [result], flops=_fft_flops(result, dimensions))
    return [*copies, last, *[_kernel([result], [result])] * (normalization != 0)]


def _fft_flops(signal: Tensor, dimensions: Sequence[int]) -> float:
    """5/2 N log₂ N for each real signal."""
    return 2.5 * signal.numel() * math.log2(math.prod(signal.shape[dimension] for dimension in dimensions))


def _solve_triangular(arguments: Sequence[Any], result: Tensor) -> list[Kernel]:
    """A copy of the right-hand side, two lists of pointers, and cuBLAS's batched solver in place."""
    matrices, right = arguments[:2]
    pointers = _kernel([], [right[:, 0, 0]])
    return [_kernel([right], [result]), pointers, pointers, _kernel([matrices, result], [result])]


_PRODUCTS = flop_registry | {
    aten.addmm_: flop_registry[aten.addmm],
    aten.baddbmm_: flop_registry[aten.baddbmm],
}
"""Formulas for the FLOPs of matrix products."""

_ALLOCATIONS = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided}

_RULES: dict[Any, Callable[[Sequence[Any], Any], list[Kernel]]] = {
    aten.convolution: _convolution,
    aten.cudnn_convolution_relu: _convolution_relu,
    aten.convolution_backward: _convolution_backward,
    aten.avg_pool2d_backward: _average_pool_backward,
    aten.max_pool2d_with_indices_backward: _max_pool_backward,
    aten.zeros_like: _fill,
    aten.ones_like: _fill,
    aten.full_like: _fill,
    aten.new_zeros: _fill,
    aten.new_ones: _fill,
    aten.new_full: _fill,
    aten.constant_pad_nd: _zeros_and_copy,
    aten.diag_embed: _zeros_and_copy,
    aten.slice_backward: _zeros_and_copy,
    aten.select_backward: _zeros_and_copy,
    aten.index: _read_part,
    aten.index_select: _read_part,
    aten.gather: _read_part,
    aten.index_put_: _write_part,
    aten.index_copy_: _write_part,
    aten.scatter_: _write_part,
    aten.index_copy: _copy_and_write_part,
    aten._fft_r2c: _real_to_complex,
    aten._fft_c2r: _complex_to_real,
    aten.linalg_solve_triangular: _solve_triangular,
}
"""Operations that are not one kernel which reads its inputs and writes its output."""
