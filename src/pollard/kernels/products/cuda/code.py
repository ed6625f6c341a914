"""The products as Triton's compiler takes them. Needs triton, which is no dependency: only `launch` imports it, where it is there.

A topology has `rows` of grains, each a block of OUTS outputs by INS inputs. A program makes the outputs of one row of grains for
some samples, which lie side by side in memory: so the numbers of one input are read as a whole, and each is used OUTS times.
Nothing is added in an order that depends on anything but the topology and the sizes of tiles.
"""

import triton
import triton.language as tl


@triton.jit
def _entries(places, entries, q, here, INS: tl.constexpr, PERMUTED: tl.constexpr):
    """Of inputs `q`, counted through all grains: the feature, the grain's place among values, and the input within the grain."""
    t = q // INS
    inner = q % INS
    feature = tl.load(places + t, mask=here, other=0).to(tl.int64) * INS + inner
    entry = tl.load(entries + t, mask=here, other=0) if PERMUTED else t
    return feature, entry, inner


@triton.jit
def _tile(x, feature, b, here, there, x_sample, x_feature):
    """Of features (down) and samples (along), what is there; elsewhere 0."""
    at = x + feature[:, None] * x_feature + b[None, :] * x_sample
    return tl.load(at, mask=here[:, None] & there[None, :], other=0.0)


@triton.jit
def _bent(y, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "silu":
        y = y / (1.0 + tl.exp(-y))
    elif ACTIVATION == "gelu":
        y = 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        # tanh(u) = 1 - 2 / (1 + exp(2 u)), of u = sqrt(2 / pi) (y + 0.044715 y^3)
        y = y * (1.0 - 1.0 / (1.0 + tl.exp(1.5957691216057308 * (y + 0.044715 * y * y * y))))
    return y


@triton.jit
def gather(
    x, values, bias, y, pointers, places, entries, order, batch, x_sample, x_feature, y_sample, y_feature,
    OUTS: tl.constexpr, INS: tl.constexpr, OUT_STEP: tl.constexpr, IN_STEP: tl.constexpr, PERMUTED: tl.constexpr,
    BIAS: tl.constexpr, ACTIVATION: tl.constexpr, WAY: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    WIDTH: tl.constexpr, SAMPLES: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """``y[:, OUTS of this row] = x[:, its inputs] @ values``, then bias and activation; sums are float32, rounded once."""
    row = tl.load(order + tl.program_id(0))
    first = tl.load(pointers + row) * INS
    last = tl.load(pointers + row + 1) * INS
    b = tl.program_id(1) * SAMPLES + tl.arange(0, SAMPLES)
    there = b < batch
    n = tl.arange(0, WIDTH)
    if WAY == "dot":
        total = tl.zeros((SAMPLES, WIDTH), tl.float32)
    elif WAY == "lone":
        total = tl.zeros((DEPTH, SAMPLES), tl.float32)
    else:
        total = tl.zeros((DEPTH, WIDTH), tl.float32)
    for k in range(first, last, DEPTH):
        q = k + tl.arange(0, DEPTH)
        here = q < last
        feature, entry, inner = _entries(places, entries, q, here, INS, PERMUTED)
        at = values + entry * (OUTS * INS) + inner * IN_STEP
        if WAY == "dot":
            tile = _tile(x, feature, b, here, there, x_sample, x_feature)
            w = tl.load(at[:, None] + n[None, :] * OUT_STEP, mask=here[:, None] & (n < OUTS)[None, :], other=0.0)
            w = w.to(tile.dtype)
            if WIDEN:
                tile, w = tile.to(tl.float32), w.to(tl.float32)
            total = tl.dot(tl.trans(tile), w, total, input_precision=PRECISION)
        elif WAY == "lone":
            tile = _tile(x, feature, b, here, there, x_sample, x_feature)
            w = tl.load(at, mask=here, other=0.0).to(tile.dtype)
            total += tile.to(tl.float32) * w.to(tl.float32)[:, None]
        else:
            tile = tl.load(x + feature * x_feature, mask=here, other=0.0)
            w = tl.load(at[:, None] + n[None, :] * OUT_STEP, mask=here[:, None] & (n < OUTS)[None, :], other=0.0)
            total += tile.to(tl.float32)[:, None] * w.to(tile.dtype).to(tl.float32)
    if WAY == "lone":
        outs = tl.sum(total, 0)[:, None]
    elif WAY == "dot":
        outs = total
    else:
        outs = tl.sum(total, 0)[None, :]
    outputs = row.to(tl.int64) * OUTS + n
    if BIAS:
        outs += tl.load(bias + outputs, mask=n < OUTS, other=0.0).to(tl.float32)[None, :]
    outs = _bent(outs, ACTIVATION)
    tl.store(
        y + b.to(tl.int64)[:, None] * y_sample + outputs[None, :] * y_feature,
        outs.to(y.dtype.element_ty),
        mask=there[:, None] & (n < OUTS)[None, :],
    )


@triton.jit
def sample(
    grad, x, out, pointers, places, order, batch, grad_sample, grad_feature, x_sample, x_feature,
    OUTS: tl.constexpr, INS: tl.constexpr, WAY: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    WIDTH: tl.constexpr, SAMPLES: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """``(grad.T @ x)`` at DEPTH inputs of the grains of one row: one number a value, rounded once."""
    row = tl.load(order + tl.program_id(0))
    first = tl.load(pointers + row) * INS + tl.program_id(1) * DEPTH
    last = tl.load(pointers + row + 1) * INS
    if first < last:
        q = first + tl.arange(0, DEPTH)
        here = q < last
        feature, _, _ = _entries(places, places, q, here, INS, False)
        n = tl.arange(0, WIDTH)
        outputs = row.to(tl.int64) * OUTS + n
        if WAY == "dot":
            total = tl.zeros((DEPTH, WIDTH), tl.float32)
        else:
            total = tl.zeros((DEPTH, SAMPLES), tl.float32)
        for s in range(0, batch, SAMPLES):
            b = s + tl.arange(0, SAMPLES)
            there = b < batch
            tile = _tile(x, feature, b, here, there, x_sample, x_feature)
            if WAY == "dot":
                g = tl.load(
                    grad + outputs[:, None] * grad_feature + b[None, :] * grad_sample,
                    mask=(n < OUTS)[:, None] & there[None, :],
                    other=0.0,
                )
                if WIDEN:
                    tile, g = tile.to(tl.float32), g.to(tl.float32)
                total = tl.dot(tile, tl.trans(g), total, input_precision=PRECISION)
            else:
                g = tl.load(grad + row.to(tl.int64) * grad_feature + b * grad_sample, mask=there, other=0.0)
                total += tile.to(tl.float32) * g.to(tl.float32)[None, :]
        if WAY == "dot":
            outs = total
        else:
            outs = tl.sum(total, 1)[:, None]
        tl.store(
            out + q[:, None] * OUTS + n[None, :],
            outs.to(out.dtype.element_ty),
            mask=here[:, None] & (n < OUTS)[None, :],
        )


@triton.jit
def turn(x, turned, batch, features, x_sample, x_feature, SIDE: tl.constexpr):
    """x `(batch, features)` with the samples of a feature side by side, `batch` apart."""
    b = tl.program_id(1) * SIDE + tl.arange(0, SIDE)
    f = tl.program_id(0) * SIDE + tl.arange(0, SIDE)
    there = (b < batch)[:, None] & (f < features)[None, :]
    tile = tl.load(x + b.to(tl.int64)[:, None] * x_sample + f.to(tl.int64)[None, :] * x_feature, mask=there, other=0.0)
    tl.store(turned + f.to(tl.int64)[:, None] * batch + b[None, :], tl.trans(tile), mask=tl.trans(there))


@triton.jit
def _lines(panel, pointers, begin, width, OUTS: tl.constexpr, INS: tl.constexpr, WIDTH: tl.constexpr):
    """Of a program's row of grains: from which input to which it goes, its outputs, and where their lines begin in a panel."""
    own = tl.program_id(0)
    first = tl.load(pointers + begin + own) * INS
    last = tl.load(pointers + begin + own + 1) * INS
    n = tl.arange(0, WIDTH)
    return first, last, n, panel + (own.to(tl.int64) * OUTS + n) * width


@triton.jit(do_not_specialize=["begin"])
def spread(
    values, panel, begin, pointers, places, entries, width,
    OUTS: tl.constexpr, INS: tl.constexpr, OUT_STEP: tl.constexpr, IN_STEP: tl.constexpr, PERMUTED: tl.constexpr,
    WIDTH: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Values of the rows of grains from `begin` on, to their places in a dense panel of zeros, `width` inputs wide."""
    first, last, n, lines = _lines(panel, pointers, begin, width, OUTS, INS, WIDTH)
    for k in range(first, last, DEPTH):
        q = k + tl.arange(0, DEPTH)
        here = q < last
        feature, entry, inner = _entries(places, entries, q, here, INS, PERMUTED)
        mask = here[:, None] & (n < OUTS)[None, :]
        at = entry * (OUTS * INS) + inner * IN_STEP
        found = tl.load(values + at[:, None] + n[None, :] * OUT_STEP, mask=mask, other=0.0)
        tl.store(lines[None, :] + feature[:, None], found.to(panel.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["begin"])
def collect(
    panel, out, begin, pointers, places, width,
    OUTS: tl.constexpr, INS: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """The numbers of a dense panel that stand where values of the rows of grains from `begin` on do."""
    first, last, n, lines = _lines(panel, pointers, begin, width, OUTS, INS, WIDTH)
    for k in range(first, last, DEPTH):
        q = k + tl.arange(0, DEPTH)
        here = q < last
        feature, _, _ = _entries(places, places, q, here, INS, False)
        mask = here[:, None] & (n < OUTS)[None, :]
        found = tl.load(lines[None, :] + feature[:, None], mask=mask, other=0.0)
        tl.store(out + q[:, None] * OUTS + n[None, :], found.to(out.dtype.element_ty), mask=mask)
