"""A prior and the codes drawn so far -> logits of the next code, by compiled loops: what stepping.py does, on a CPU.

A position of a map is so little work that calling an operation costs more than computing it. Here a position is one
call, and so is what the vertical stack does for a row; numba compiles both for this processor, once, and keeps the
result beside this file (or in the user's cache). Matrix products go over tiles of `ROWS_AT_ONCE` rows and two vectors
of columns, which stay in registers: twice as fast as the library's products on processors that are not Intel's.

NOTE All of it is in one file: numba compiles a function anew when its own file has changed, but not when another has.

References
1. Goto, van de Geijn 2008, Anatomy of high-performance matrix multiplication.
2. Cody, Waite 1980, Software manual for the elementary functions (the range reduction of exp).
"""

import math
from collections.abc import Iterable
from pathlib import Path

import llvmlite.binding
import numba
import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload, register_jitable
from torch import nn

from vqvae2.common.progress import Bar
from vqvae2.priors.causal_layers import ROWS, VerticalConv

if numba.config.DISABLE_JIT:
    raise ImportError("numba is switched off: NUMBA_DISABLE_JIT is set")

OPTIONS = {"fastmath": {"contract"}, "error_model": "numpy", "boundscheck": False, "nogil": True}
FEATURES = llvmlite.binding.get_host_cpu_features()
VECTOR_BITS = next((bits for feature, bits in (("avx512f", 512), ("avx", 256)) if FEATURES.get(feature)), 128)
ROWS_AT_ONCE = 8 if VECTOR_BITS == 512 else 4
"""Rows of a tile: processors with 512-bit vectors have twice as many registers as those with 256."""
BLOCK = 256
"""Rows of the vertical stack that go through a layer together: they stay in the cache, and weights are read seldom."""


def compiled(function):
    """Return the function compiled at its first call, and kept on the disk where there is a place for it."""
    try:
        return njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # neither the folder of this file nor the user's cache can be written
        return njit(**OPTIONS)(function)


def _tile(rows: int):
    """Return an operation on a tile of `rows` rows and two vectors of columns, `out += x w`, for `inner` columns of x.

    Its arguments: an array (for the type), the addresses of the tile's first elements in out, x and w, how many
    elements the next row is away in each, and `inner`, at least 1.
    """
    @intrinsic
    def tile(typing, like, out, out_step, x, x_step, w, w_step, inner):
        def build(context, builder, signature, values):
            _, *places, inner = values
            (out, out_step), (x, x_step), (w, w_step) = zip(places[::2], places[1::2])
            number = context.get_value_type(like.dtype)
            bits = like.dtype.bitwidth
            lanes = VECTOR_BITS // bits
            vector, index = ir.VectorType(number, lanes), ir.IntType(64)
            out, x, w = (builder.inttoptr(place, number.as_pointer()) for place in (out, x, w))

            def vector_at(base, step, row, part):
                offset = builder.add(builder.mul(step, row), index(part * lanes))
                return builder.bitcast(builder.gep(base, [offset]), vector.as_pointer())

            multiply_add = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{lanes}f{bits}")
            none, first = ir.Constant(vector, ir.Undefined), ir.IntType(32)(0)
            everywhere = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
            parts = [(row, part) for row in range(rows) for part in range(2)]
            before, loop, after = (builder.block, builder.append_basic_block("columns"),
                                   builder.append_basic_block("done"))
            begun = [builder.load(vector_at(out, out_step, index(row), part), align=bits // 8) for row, part in parts]
            builder.branch(loop)
            builder.position_at_end(loop)
            column, *sums = (builder.phi(kind) for kind in [index] + [vector] * len(parts))
            weights = [builder.load(vector_at(w, w_step, column, part), align=bits // 8) for part in range(2)]
            spread = []
            for row in range(rows):
                value = builder.load(builder.gep(x, [builder.add(builder.mul(x_step, index(row)), column)]))
                spread.append(builder.shuffle_vector(builder.insert_element(none, value, first), none, everywhere))
            grown = [builder.call(multiply_add, [spread[row], weights[part], total])
                     for (row, part), total in zip(parts, sums)]
            following = builder.add(column, index(1))
            for phi, start, result in zip([column, *sums], [index(0), *begun], [following, *grown]):
                phi.add_incoming(start, before)
                phi.add_incoming(result, loop)
            builder.cbranch(builder.icmp_signed("<", following, inner), loop, after)
            builder.position_at_end(after)
            for (row, part), result in zip(parts, grown):
                builder.store(result, vector_at(out, out_step, index(row), part), align=bits // 8)
            return context.get_dummy_value()

        return types.void(like, out, out_step, x, x_step, w, w_step, inner), build
    return tile


_tall_tile, _low_tile = _tile(ROWS_AT_ONCE), _tile(ROWS_AT_ONCE // 2)


@register_jitable
def _add_row(out, x, w, columns):
    """Add the vector `x` `[inner]` times `w` `[inner, …]` to `out`, in its first `columns`: bound by reading `w`."""
    whole = len(x) - len(x) % 8
    for i in range(0, whole, 8):
        x0, x1, x2, x3, x4, x5, x6, x7 = x[i], x[i + 1], x[i + 2], x[i + 3], x[i + 4], x[i + 5], x[i + 6], x[i + 7]
        for j in range(columns):
            out[j] = (out[j] + x0 * w[i, j] + x1 * w[i + 1, j] + x2 * w[i + 2, j] + x3 * w[i + 3, j]
                      + x4 * w[i + 4, j] + x5 * w[i + 5, j] + x6 * w[i + 6, j] + x7 * w[i + 7, j])
    for i in range(whole, len(x)):
        for j in range(columns):
            out[j] += x[i] * w[i, j]


@compiled
def _add_product(out, x, w):
    """Add `x` `[rows, inner]` times `w` `[inner, columns]` to `out` `[rows, columns]`; all lie row by row in memory."""
    rows, inner = x.shape
    columns, size = w.shape[1], out.itemsize
    across, low = 2 * (VECTOR_BITS // (8 * size)), ROWS_AT_ONCE // 2
    tall_rows, tile_rows, tiled = rows - rows % ROWS_AT_ONCE, rows - rows % low, columns - columns % across
    for column in range(0, tiled, across):
        out_at, w_at = out.ctypes.data + column * size, w.ctypes.data + column * size
        for row in range(0, tall_rows, ROWS_AT_ONCE):
            _tall_tile(out, out_at + row * columns * size, columns, x.ctypes.data + row * inner * size, inner,
                       w_at, columns, inner)
        for row in range(tall_rows, tile_rows, low):
            _low_tile(out, out_at + row * columns * size, columns, x.ctypes.data + row * inner * size, inner,
                      w_at, columns, inner)
    for row in range(tile_rows):
        for i in range(inner):
            for j in range(tiled, columns):
                out[row, j] += x[row, i] * w[i, j]
    for row in range(tile_rows, rows):
        _add_row(out[row], x[row], w, columns)


@intrinsic
def _power_of_two(typing, shifted):
    """Return 2^n of `shifted`, n + 1.5 · 2^52 (of 32 bits: + 1.5 · 2^23), whose last bits are n."""
    integer, bias, shift = {32: (ir.IntType(32), 127, 23), 64: (ir.IntType(64), 1023, 52)}[shifted.bitwidth]

    def build(context, builder, signature, values):
        exponent = builder.add(builder.bitcast(values[0], integer), integer(bias))
        return builder.bitcast(builder.shl(exponent, integer(shift)), context.get_value_type(shifted))

    return shifted(shifted), build


def _exp(x):
    """Return e^x within 2 units of the last place; x beyond -708…709 (in 32 bits -87…88) counts as that end."""
    return math.exp(x)


@overload(_exp)
def _vector_exp(x):
    """numba makes vectors of arithmetic, but of no function of a library: this is [2] and a Taylor polynomial."""
    number, magic, least, most = {types.float32: (np.float32, 1.5 * 2**23, -87, 88),
                                  types.float64: (np.float64, 1.5 * 2**52, -708, 709)}[x]
    magic, least, most, per_bit, one = map(number, (magic, least, most, 1 / math.log(2), 1))
    # ln 2 in two parts: products of the first with n are exact.
    high, low = number(0.693145751953125), number(1.42860682030941723212e-6)
    c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c12, c13 = (number(1 / math.factorial(i)) for i in range(2, 14))

    def of_32_bits(x):
        shifted = min(max(x, least), most) * per_bit + magic
        n = shifted - magic
        r = min(max(x, least), most) - n * high - n * low
        return (one + r * (one + r * (c2 + r * (c3 + r * (c4 + r * (c5 + r * (c6 + r * c7))))))
                ) * _power_of_two(shifted)

    def of_64_bits(x):
        shifted = min(max(x, least), most) * per_bit + magic
        n = shifted - magic
        r = min(max(x, least), most) - n * high - n * low
        return (one + r * (one + r * (c2 + r * (c3 + r * (c4 + r * (c5 + r * (c6 + r * (c7 + r * (c8 + r * (c9 + r * (
            c10 + r * (c11 + r * (c12 + r * c13))))))))))))) * _power_of_two(shifted)

    return of_32_bits if number is np.float32 else of_64_bits


@register_jitable
def _elu(value):
    """Return the exponential linear unit of a number."""
    zero = type(value)(0)
    return value if value > zero else _exp(min(value, zero)) - type(value)(1)


@register_jitable
def _put_elu(out, x, start):
    """Put the ELU of `x` `[rows, columns]` into `out`, another array, from its row `start` on."""
    for row in range(len(x)):
        for j in range(x.shape[1]):
            out[start + row, j] = _elu(x[row, j])


@register_jitable
def _make_elu(x):
    """Do `_put_elu` in place: with `out` the same array, there would be no vectors."""
    for row in range(len(x)):
        for j in range(x.shape[1]):
            x[row, j] = _elu(x[row, j])


@register_jitable
def _add_gated(x, sums, with_tanh):
    """Add to `x` `[rows, channels]` a half of `sums` `[rows, 2 x channels]`, or its tanh, times the other's sigmoid."""
    one, two, channels = x.dtype.type(1), x.dtype.type(2), x.shape[1]
    for row in range(len(x)):
        own, values = x[row], sums[row]
        if with_tanh:
            for j in range(channels):
                value = one - two / (_exp(two * values[j]) + one)
                own[j] += value / (one + _exp(-values[channels + j]))
        else:
            for j in range(channels):
                own[j] += values[j] / (one + _exp(-values[channels + j]))


@register_jitable
def _put_product(out, x, w, bias):
    """Put the product of `x` and `w` and the bias `[columns]` into `out`."""
    for row in range(len(out)):
        for j in range(len(bias)):
            out[row, j] = bias[j]
    _add_product(out, x, w)


@register_jitable
def _move_up(rows, new, edge):
    """Move vertical rows `[(width + 2) x batch, 2 x channels]`, the row above beside this one, up by one.

    `new` `[width x batch, channels]` is this row now; at both sides of it there are `edge` rows of padding.
    """
    channels = new.shape[1]
    for position in range(len(new)):
        for j in range(channels):
            rows[edge + position, j] = rows[edge + position, channels + j]
            rows[edge + position, channels + j] = new[position, j]


@register_jitable
def _put_vertical(out, rows, start, batch, taps, bias):
    """Put what a vertical kernel makes of some positions of `rows`, from the `start`-th on, into `out`."""
    _put_product(out, rows[start:start + len(out)], taps[0], bias)
    for tap in range(1, len(taps)):
        _add_product(out, rows[start + tap * batch:start + tap * batch + len(out)], taps[tap])


@register_jitable
def _add_attention(x, first, query_key_value, query_key_value_bias, out, out_bias, keys, values):
    """Add to `x` `[columns x batch, channels]`, from the `first` position on, what each finds there and before it.

    Args:
        keys: `[batch, heads, size, positions]`. values: `[batch, heads, positions, size]`; both are filled here.
    """
    batch, heads, size, positions = keys.shape
    channels, scale, zero = heads * size, x.dtype.type(1 / math.sqrt(size)), x.dtype.type(0)
    split, seen = np.empty((len(x), 3 * channels), x.dtype), np.empty((len(x), channels), x.dtype)
    weights = np.empty(positions, x.dtype)
    _put_elu(seen, x, 0)
    _put_product(split, seen, query_key_value, query_key_value_bias)
    for row in range(len(x)):
        position, image = first + row // batch, row % batch
        for head in range(heads):
            for i in range(size):
                at = head * size + i
                split[row, at] *= scale
                keys[image, head, i, position] = split[row, channels + at]
                values[image, head, position, i] = split[row, 2 * channels + at]
                seen[row, at] = zero
    for row in range(len(x)):
        count, image = first + row // batch + 1, row % batch
        for head in range(heads):
            for i in range(count):
                weights[i] = zero
            _add_row(weights, split[row, head * size:(head + 1) * size], keys[image, head], count)
            largest, total = weights[0], zero
            for i in range(count):
                largest = max(largest, weights[i])
            for i in range(count):
                weights[i] = _exp(weights[i] - largest)
            for i in range(count):
                total += weights[i]
            for i in range(count):
                weights[i] /= total
            _add_row(seen[row, head * size:(head + 1) * size], weights[:count], values[image, head], size)
    for row in range(len(x)):
        for j in range(channels):
            x[row, j] += out_bias[j]
    _add_product(x, seen, out)


@compiled
def logits_of(column, count, row, codes, starts, place, given, active, with_tanh, attention_after, horizontal_in,
              horizontal_out, horizontal_out_bias, query_key_value, query_key_value_bias, out, out_bias, keys, values,
              head, head_bias, last, last_bias, table, bias):
    """Return the logits `[count x batch, codebook_size]` of `count` positions of a row, from a column on.

    Args:
        codes: `[width, batch]`, the row's codes, known to the left of the last of these positions.
        starts: `[2, codebook_size, channels]`, what a code adds to the first input of the next column and of that after
            it. place: `[width, channels]`, the features of the row's positions.
        given: `[layers, width x batch, channels]`, what each layer is given from above; used up.
        active: `[layers, (width + 1) x batch, channels]`, each layer's inputs, of column c at c + 1.
        attention_after: for each layer the number of the attention after it, or -1.
        keys, values: of all positions before, as for `_add_attention`. The others are weights.
    """
    width, batch = codes.shape
    channels, rows, begin = given.shape[2], count * batch, column * batch
    x, sums = np.empty((rows, channels), given.dtype), np.empty((rows, 2 * channels), given.dtype)
    for i in range(rows):
        here, image = column + i // batch, i % batch
        for j in range(channels):
            x[i, j] = place[here, j]
        for distance in range(1, min(here, len(starts)) + 1):
            start = starts[distance - 1, codes[here - distance, image]]
            for j in range(channels):
                x[i, j] += start[j]
    for layer in range(len(given)):
        own, seen = given[layer, begin:begin + rows], active[layer]
        _put_elu(seen, x, begin + batch)
        for step in range(horizontal_in.shape[1]):
            _add_product(own, seen[begin + step * batch:begin + step * batch + rows], horizontal_in[layer, step])
        _make_elu(own)
        _put_product(sums, own, horizontal_out[layer], horizontal_out_bias[layer])
        _add_gated(x, sums, with_tanh)
        i = attention_after[layer]
        if i >= 0:
            _add_attention(x, row * width + column, query_key_value[i], query_key_value_bias[i], out[i], out_bias[i],
                           keys[i], values[i])
    features, narrow = np.empty((rows, channels), x.dtype), np.empty((rows, last.shape[1]), x.dtype)
    logits = np.empty((rows, table.shape[1]), x.dtype)
    _make_elu(x)
    _put_product(features, x, head, head_bias)
    _make_elu(features)
    _put_product(narrow, features, last, last_bias)
    _put_product(logits, narrow, table, bias)
    return logits


@compiled
def begin_row(batch, above, given, first_rows, rows, place, condition, base, with_tanh, first_taps, first_bias, taps,
              taps_bias, vertical_out, vertical_out_bias, from_vertical, from_condition):
    """Go on to the next row of the vertical stack, and put what it gives each layer into `given`.

    Args:
        above: `[width x batch, dim]`, the embedded codes of the row above; 0 for the first row.
        given: `[layers, width x batch, channels]`.
        first_rows: `[(width + 2) x batch, 2 x dim]`. rows: `[layers, (width + 2) x batch, 2 x channels]`. Both are the
            two rows that a vertical kernel sees, side by side, with padding at both ends.
        place: `[width, channels]`, the features of the row's positions.
        condition: `[width x batch, channels]`, or of no rows. base: `[layers, batch, channels]`, what each layer is
            given at all positions. The others are weights.
    """
    layers, positions, channels = given.shape
    vertical, active = np.empty((positions, channels), given.dtype), np.empty((positions, channels), given.dtype)
    sums, seen = np.empty((BLOCK, 2 * channels), given.dtype), np.empty((BLOCK, channels), given.dtype)
    _move_up(first_rows, above, batch)
    _put_vertical(vertical, first_rows, 0, batch, first_taps, first_bias)
    for position in range(positions):
        for j in range(channels):
            vertical[position, j] += place[position // batch, j]
    _put_elu(active, vertical, 0)
    for layer in range(layers):
        _move_up(rows[layer], active, batch)
        for start in range(0, positions, BLOCK):
            end = min(start + BLOCK, positions)
            count = end - start
            _put_vertical(seen[:count], rows[layer], start, batch, taps[layer], taps_bias[layer])
            _make_elu(seen[:count])
            _put_product(sums[:count], seen[:count], vertical_out[layer], vertical_out_bias[layer])
            _add_gated(vertical[start:end], sums[:count], with_tanh)
            _put_elu(active, vertical[start:end], start)
            for position in range(start, end):
                for j in range(channels):
                    given[layer, position, j] = base[layer, position % batch, j]
            _add_product(given[layer, start:end], active[start:end], from_vertical[layer])
            if len(condition):
                _add_product(given[layer, start:end], condition[start:end], from_condition[layer])


@compiled
def chosen(logits, numbers, temperature):
    """Return the codes `[batch]` that `numbers` `[batch]` in [0, 1) draw from `logits` `[batch, codebook_size]`.

    A code is the first at which the cumulative probability, in float64, passes the number.
    """
    codes, weights = np.empty(len(logits), np.int64), np.empty(logits.shape[1])
    for image in range(len(logits)):
        largest, total = logits[image, 0], 0.0
        for code in range(len(weights)):
            largest = max(largest, logits[image, code])
        for code in range(len(weights)):
            weights[code] = _exp((np.float64(logits[image, code]) - np.float64(largest)) / temperature)
        for code in range(len(weights)):
            total += weights[code]
        passed, sought, code = weights[0], numbers[image] * total, 0
        while passed <= sought and code < len(weights) - 1:
            code += 1
            passed += weights[code]
        codes[image] = code
    return codes


class CompiledCursor:
    """What `stepping.PixelCNNCursor` is, for a prior in float32 or float64 on a CPU.

    Args:
        prior: a `PixelCNN` in eval mode; its weights must not change meanwhile.
        batch, top_codes, known, previous: as for `PixelCNNCursor`.
    """

    @torch.no_grad()
    def __init__(self, prior: nn.Module, batch: int, top_codes: torch.Tensor | None = None,
                 known: torch.Tensor | None = None, previous: torch.Tensor | None = None):
        layers, channels, (height, width) = list(prior.layers), prior.settings.channels, prior.shape
        attentions, with_tanh = list(prior.attentions.values()), prior.settings.network == "gated"
        heads = attentions[0].heads if attentions else 1
        self.table, dim = prior.table.detach().numpy(), prior.table.shape[1]
        # The codes of this row.
        self.codes = np.zeros((width, batch), np.int64)
        condition = prior.condition(batch, top_codes, known, previous)
        everywhere = condition is not None and condition.shape[2:] == (1, 1)
        # `[height, width, batch, channels]`, where the condition is not the same everywhere.
        self.condition = None if condition is None or everywhere else condition.permute(2, 3, 0, 1)
        base = torch.stack([(layer.from_vertical.bias + layer.horizontal_in.conv.bias).expand(batch, -1)
                            for layer in layers])
        if condition is not None:
            base = base + _biases(layer.from_condition for layer in layers)[:, None]
        if everywhere:
            base = base + condition[:, :, 0, 0] @ _matrices(layer.from_condition for layer in layers)

        def zeros(*shape: int) -> torch.Tensor:
            return prior.table.new_zeros(shape)

        self.above, self.given = _arrays(zeros(width * batch, dim), zeros(len(layers), width * batch, channels))
        self.vertical_place = prior.vertical_place.permute(1, 2, 0).contiguous().numpy()
        self.vertical = _arrays(
            base, with_tanh, _taps([prior.vertical_first])[0], prior.vertical_first.conv.bias,
            _taps(layer.vertical_in for layer in layers), _biases(layer.vertical_in.conv for layer in layers),
            _matrices(layer.vertical_out for layer in layers), _biases(layer.vertical_out for layer in layers),
            _matrices(layer.from_vertical for layer in layers),
            zeros(0, 0, 0) if self.condition is None else _matrices(layer.from_condition for layer in layers))
        self.rows = _arrays(*(zeros(*shape) for shape in (((width + 2) * batch, ROWS * dim),
                                                          (len(layers), (width + 2) * batch, ROWS * channels))))
        self.horizontal_place = (prior.horizontal_place.permute(1, 2, 0) + prior.horizontal_first.conv.bias).numpy()
        first, second = (conv for conv in prior.head if isinstance(conv, nn.Conv2d))
        kernels = prior.horizontal_first.conv.weight[:, :, 0].unbind(2)
        after = {int(layer): number for number, layer in enumerate(prior.attentions)}
        [self.starts] = _arrays(torch.stack([prior.table @ kernel.T for kernel in reversed(kernels)]))
        self.horizontal = _arrays(
            zeros(len(layers), (width + 1) * batch, channels), with_tanh,
            torch.tensor([after.get(layer, -1) for layer in range(len(layers))]),
            torch.stack([layer.horizontal_in.conv.weight[:, :, 0].permute(2, 1, 0) for layer in layers]),
            _matrices(layer.horizontal_out for layer in layers), _biases(layer.horizontal_out for layer in layers),
            *([part(conv) for conv in ([each.query_key_value for each in attentions], [each.out for each in attentions])
               for part in (_matrices, _biases)] if attentions else [zeros(0, 0, 0), zeros(0, 0)] * 2),
            zeros(len(attentions), batch, heads, channels // heads, height * width),
            zeros(len(attentions), batch, heads, height * width, channels // heads),
            _matrices([first])[0], first.bias, _matrices([second])[0], second.bias, prior.table.T * dim ** -0.5,
            prior.bias)
        if not logits_of.signatures and not any(Path(logits_of.stats.cache_path or "").glob("compiled.logits_of*")):
            self._compile()

    def step(self, row: int, column: int) -> torch.Tensor:
        """Return the logits `[batch, codebook_size]` of the next position in raster order.

        Positions must be asked for in raster order, with `tell` between them.
        """
        if column == 0:
            self._begin_row(row)
        return self._logits(row, column, 1)

    def tell(self, column: int, codes: torch.Tensor) -> None:
        """Put the codes `[batch]` that were drawn at the position into the state."""
        self.codes[column] = codes

    def read_row(self, row: int, codes: torch.Tensor) -> torch.Tensor:
        """Return the logits `[width, batch, codebook_size]` of a row whose codes `[width, batch]` are known already.

        It stands for `step` and `tell` at each position of the row.
        """
        self._begin_row(row)
        self.codes[:] = codes
        return self._logits(row, 0, len(codes)).view(*codes.shape, -1)

    def _compile(self) -> None:
        """Compile the loops under a bar; otherwise their first call would do it, and nobody would know what goes on."""
        with Bar(total=2, desc="compiling the loops for this processor, once", unit="loop") as bar:
            begin_row(0, self.above[:0], self.given[:0], *self.rows, self.vertical_place[0], self.above[:0],
                      *self.vertical)
            bar.update()
            self._logits(0, 0, 0)

    def _begin_row(self, row: int) -> None:
        if row:
            np.take(self.table, self.codes.ravel(), 0, self.above)
        condition = self.above[:0] if self.condition is None else self.condition[row].reshape(
            len(self.above), -1).contiguous().numpy()
        begin_row(self.codes.shape[1], self.above, self.given, *self.rows, self.vertical_place[row], condition,
                  *self.vertical)

    def _logits(self, row: int, column: int, count: int) -> torch.Tensor:
        return torch.from_numpy(logits_of(column, count, row, self.codes, self.starts, self.horizontal_place[row],
                                          self.given, *self.horizontal))


def choose(logits: torch.Tensor, numbers: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the codes `[batch]` that `numbers` draw from `logits`, as `sampler.choose` does with all codes allowed."""
    wide = logits if logits.dtype == torch.float32 else logits.double()
    return torch.from_numpy(chosen(wide.detach().contiguous().numpy(), numbers.contiguous().numpy(),
                                   float(temperature)))


def convolved(x: torch.Tensor, conv: nn.Conv2d) -> torch.Tensor:
    """Return what a convolution of stride 1, padded to the same size, makes of `x` `[batch, channels, height, width]`,
    of at least one map.

    It is a product for each place of the kernel, over the padded maps laid one behind the other; places that lie over
    an edge are computed and dropped.
    """
    (height, width), side = x.shape[2:], conv.kernel_size[0]
    taps = conv.weight.detach().permute(2, 3, 1, 0).flatten(0, 1).contiguous().numpy()
    padded = nn.functional.pad(x, [side // 2] * 4).permute(0, 2, 3, 1).contiguous()
    flat = padded.flatten(0, 2).numpy()
    out = conv.bias.detach().repeat(len(flat), 1)
    count = len(flat) - (side - 1) * (padded.shape[2] + 1)
    for tap, matrix in enumerate(taps):
        start = tap // side * padded.shape[2] + tap % side
        _add_product(out.numpy()[:count], flat[start:start + count], matrix)
    return out.view(*padded.shape[:3], -1)[:, :height, :width].permute(0, 3, 1, 2)


def _matrices(convolutions: Iterable[nn.Conv2d]) -> torch.Tensor:
    """Return the kernels of 1 x 1 convolutions as matrices `[n, channels_in, channels_out]`."""
    return torch.stack([conv.weight[:, :, 0, 0].T for conv in convolutions])


def _biases(convolutions: Iterable[nn.Conv2d]) -> torch.Tensor:
    """Return the biases of convolutions `[n, channels_out]`."""
    return torch.stack([conv.bias for conv in convolutions])


def _taps(convolutions: Iterable[VerticalConv]) -> torch.Tensor:
    """Return the columns of vertical kernels, both rows in one matrix: `[n, 3, 2 x channels_in, channels_out]`."""
    return torch.stack([vertical.conv.weight.permute(3, 2, 1, 0).flatten(1, 2) for vertical in convolutions])


def _arrays(*values: torch.Tensor | bool) -> list[np.ndarray | bool]:
    """Return tensors as arrays that lie row by row in memory, and what is none as it is."""
    return [value.detach().contiguous().numpy() if isinstance(value, torch.Tensor) else value for value in values]
