"""Attention over stored tokens and statistics of its weights, in Triton.

The stored tokens of a KV head are slots, numbered from the oldest: slot s is token ``s % width`` of row ``first + s //
width`` of the storage, where a dense group has one row a head and pages have several. A slot whose position is -1 is
padding. Logarithms are of base 2, and ``scale`` contains the factor log2(e).

The first pass leaves the logarithm of each query's softmax sum; the second computes the weights from it once more, tile
by tile, and writes nothing but the statistic. No float32 product is rounded to TF32. Tiles are multiplied as ``TILE``,
the tensors' own dtype on a GPU.
"""

import triton
import triton.language as tl

_VARYING = ["count", "kv_heads", "new", "width", "own", "window", "per_split", "splits", "split_offset"]
_VARYING += ["p_b", "p_r", "s_b", "s_r", "s_f", "t_b", "t_r", "t_f", "w_b", "w_r", "w_f"]
"""Numbers for which a kernel is not compiled anew when they become 1 or a multiple of 16."""


@triton.jit
def _load_slots(positions, b, first, slot, stop, width, p_b, p_r):  # type: ignore[no-untyped-def]
    """Return the rows, places in them and positions of slots; -1 from ``stop`` on."""
    row = (first + slot // width).to(tl.int64)
    place = slot % width
    position = tl.load(positions + b * p_b + row * p_r + place, mask=slot < stop, other=-1)
    return row, place, position


@triton.jit(do_not_specialize=_VARYING)
def attend(  # type: ignore[no-untyped-def]
    q, k, v, positions, out, lse, heads, first, rows, seen,
    q_b, q_h, q_i, k_b, k_r, k_t, v_b, v_r, v_t, p_b, p_r,
    count, kv_heads, new, width, own, window,
    per_split, splits, split_offset, scale,
    GROUP: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TILE: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    """Attend from a block of a KV head's queries to a range of its slots.

    A row m of the block is query ``m // GROUP`` of the KV head's query head ``m % GROUP``. Writes the output,
    normalised within the range, and the logarithm of the softmax sum, as number ``split_offset`` + split of ``splits``.
    """
    block, pair, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    b, r = (pair // count).to(tl.int64), pair % count
    head, start = tl.load(heads + r), tl.load(first + r)
    slots = tl.load(rows + r).to(tl.int32) * width
    m = block * BLOCK_M + tl.arange(0, BLOCK_M)
    i, is_query = m // GROUP, m < new * GROUP
    query_head = head * GROUP + m % GROUP
    d, dv = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    q_at = b * q_b + query_head * q_h + i * q_i
    query = tl.load(q + q_at[:, None] + d[None, :], mask=is_query[:, None] & (d < D)[None, :], other=0.0).to(TILE)
    at = tl.load(seen + b) + i
    oldest = block * BLOCK_M // GROUP
    newest = tl.minimum((block * BLOCK_M + BLOCK_M - 1) // GROUP, new - 1)
    end = tl.where(own > 0, slots - own + newest + 1, slots)
    begin, stop = split * per_split, tl.minimum(end, (split + 1) * per_split)
    if WINDOWED:  # positions ascend, so that what the block's queries can see lies at the end
        begin = tl.maximum(begin, end - window - (newest - oldest))
    high = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    for low in range(begin, stop, BLOCK_N):
        slot = low + tl.arange(0, BLOCK_N)
        row, place, position = _load_slots(positions, b, start, slot, stop, width, p_b, p_r)
        real = position >= 0
        k_at = b * k_b + row * k_r + place * k_t
        key = tl.load(k + k_at[None, :] + d[:, None], mask=real[None, :] & (d < D)[:, None], other=0.0)
        scores = tl.dot(query, key.to(TILE), input_precision="ieee") * scale
        visible = real[None, :] & (position[None, :] <= at[:, None])
        if WINDOWED:
            visible = visible & (at[:, None] - position[None, :] < window)
        scores = tl.where(visible, scores, -float("inf"))
        higher = tl.maximum(high, tl.max(scores, 1))
        base = tl.where(higher == -float("inf"), 0.0, higher)
        weights = tl.exp2(scores - base[:, None])
        fade = tl.exp2(high - base)
        total = total * fade + tl.sum(weights, 1)
        v_at = b * v_b + row * v_r + place * v_t
        value = tl.load(v + v_at[:, None] + dv[None, :], mask=real[:, None] & (dv < DV)[None, :], other=0.0)
        mixed = mixed * fade[:, None] + tl.dot(weights.to(TILE), value.to(TILE), input_precision="ieee")
        high = higher
    some = total > 0
    total = tl.where(some, total, 1.0)
    cell = ((b * kv_heads * GROUP + query_head) * new + i) * splits + split_offset + split
    mixed = mixed / total[:, None]
    tl.store(out + cell[:, None] * DV + dv[None, :], mixed, mask=is_query[:, None] & (dv < DV)[None, :])
    tl.store(lse + cell, tl.where(some, high + tl.log2(total), -float("inf")), mask=is_query)


@triton.jit(do_not_specialize=_VARYING)
def combine(  # type: ignore[no-untyped-def]
    partial, partial_lse, out, lse, splits,
    DV: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Join one query's outputs over ranges of slots into one softmax."""
    cell = tl.program_id(0).to(tl.int64)
    s, dv = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_DV)
    parts = tl.load(partial_lse + cell * splits + s, mask=s < splits, other=-float("inf"))
    high = tl.max(parts, 0)
    weights = tl.exp2(parts - tl.where(high == -float("inf"), 0.0, high))
    total = tl.sum(weights, 0)
    outputs = tl.load(
        partial + (cell * splits + s)[:, None] * DV + dv[None, :],
        mask=(s < splits)[:, None] & (dv < DV)[None, :],
        other=0.0,
    )
    mixed = tl.sum(outputs * weights[:, None], 0) / tl.where(total > 0, total, 1.0)
    tl.store(out + cell * DV + dv, mixed, mask=dv < DV)
    tl.store(lse + cell, high + tl.log2(total))


@triton.jit
def _mean_weights(  # type: ignore[no-untyped-def]
    q, lse, key, position, b, head, i, is_query, at, q_b, q_h, q_i, kv_heads, new, window, scale,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, WINDOWED: tl.constexpr, ROUNDED: tl.constexpr,
):  # fmt: skip
    """Softmax weights of slots (rows) from queries (columns), averaged over the query heads of a KV head; float32."""
    d = tl.arange(0, BLOCK_D)
    visible = (position >= 0)[:, None] & (position[:, None] <= at[None, :]) & is_query[None, :]
    if WINDOWED:
        visible = visible & (at[None, :] - position[:, None] < window)
    total = tl.zeros([position.shape[0], i.shape[0]], tl.float32)
    for g in range(GROUP):
        query_head = head * GROUP + g
        q_at = b * q_b + query_head * q_h + i * q_i
        query = tl.load(q + q_at[None, :] + d[:, None], mask=is_query[None, :] & (d < D)[:, None], other=0.0)
        logsum = tl.load(lse + (b * kv_heads * GROUP + query_head) * new + i, mask=is_query, other=0.0)
        scores = tl.dot(key, query.to(key.dtype), input_precision="ieee") * scale
        weights = tl.exp2(tl.where(visible, scores - logsum[None, :], -float("inf")))
        total += weights.to(ROUNDED).to(tl.float32)
    return (total / GROUP).to(ROUNDED).to(tl.float32)


@triton.jit(do_not_specialize=_VARYING)
def fold_sum(  # type: ignore[no-untyped-def]
    q, k, positions, lse, state, heads, first, rows, seen,
    begins, ends, anew,
    q_b, q_h, q_i, k_b, k_r, k_t, p_b, p_r, s_b, s_r,
    count, kv_heads, new, width, own, window, scale,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, TILE: tl.constexpr,
    BLOCK_Q: tl.constexpr, WINDOWED: tl.constexpr, ROUNDED: tl.constexpr,
):  # fmt: skip
    """Add to a block of slots the weights of queries ``begins[b]`` to ``ends[b]``, to zero where ``anew[b]``."""
    block, pair = tl.program_id(0), tl.program_id(1)
    b, r = (pair // count).to(tl.int64), pair % count
    head, start = tl.load(heads + r), tl.load(first + r)
    slots = tl.load(rows + r).to(tl.int32) * width
    slot, d = block * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    row, place, position = _load_slots(positions, b, start, slot, slots, width, p_b, p_r)
    k_at = b * k_b + row * k_r + place * k_t
    key = tl.load(k + k_at[:, None] + d[None, :], mask=(position >= 0)[:, None] & (d < D)[None, :], other=0.0).to(TILE)
    before, begin, end = tl.load(seen + b), tl.load(begins + b), tl.load(ends + b)
    if own > 0:  # the queries before a block's first token do not see it
        begin = tl.maximum(begin, block * BLOCK_N - (slots - own))
    total = tl.zeros([BLOCK_N], tl.float32)
    for query in range(begin, end, BLOCK_Q):
        i = query + tl.arange(0, BLOCK_Q)
        weights = _mean_weights(
            q, lse, key, position, b, head, i, i < end, before + i, q_b, q_h, q_i, kv_heads, new, window, scale,
            GROUP, D, BLOCK_D, WINDOWED, ROUNDED,
        )  # fmt: skip
        total += tl.sum(weights, 1)
    to = state + b * s_b + row * s_r + place
    old = tl.load(to, mask=slot < slots, other=0.0)
    tl.store(to, tl.where(tl.load(anew + b) > 0, 0.0, old) + total, mask=slot < slots)


@triton.jit(do_not_specialize=_VARYING)
def fold_spectrum(  # type: ignore[no-untyped-def]
    q, k, positions, lse, spectrum, tail, pending, dft,
    heads, first, rows, seen, lengths,
    q_b, q_h, q_i, k_b, k_r, k_t, p_b, p_r,
    s_b, s_r, s_f, t_b, t_r, t_f, w_b, w_r, w_f,
    count, kv_heads, new, width, own, window, scale,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, TILE: tl.constexpr,
    WINDOWED: tl.constexpr, ROUNDED: tl.constexpr, PENDING: tl.constexpr, DECAY: tl.constexpr,
    PRODUCTS: tl.constexpr,
):  # fmt: skip
    """Fold the weights that a block of slots receives into S, hop by hop; what is left of a hop goes to ``pending``.

    ``dft`` is (32, 32): 16 rows for the hop before and 16 for the current one; columns are cosine and sine of bins 0 to
    15 in turn, but for the sine of bin 0, which vanishes and has the cosine of bin 16 in its place.
    """
    block, pair = tl.program_id(0), tl.program_id(1)
    b, r = (pair // count).to(tl.int64), pair % count
    head, start = tl.load(heads + r), tl.load(first + r)
    slots = tl.load(rows + r).to(tl.int32) * width
    slot, d, n = block * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D), tl.arange(0, 16)
    row, place, position = _load_slots(positions, b, start, slot, slots, width, p_b, p_r)
    there = (slot < slots)[:, None]
    k_at = b * k_b + row * k_r + place * k_t
    key = tl.load(k + k_at[:, None] + d[None, :], mask=(position >= 0)[:, None] & (d < D)[None, :], other=0.0).to(TILE)
    before, length = tl.load(seen + b), tl.load(lengths + b)
    phase = before % 16
    hops, rest = (phase + length) // 16, (phase + length) % 16
    s_at = (b * s_b + row * s_r + place)[:, None] + n[None, :] * s_f
    s16_at = b * s_b + row * s_r + place + 16 * s_f
    t_at = (b * t_b + row * t_r + place)[:, None] + n[None, :] * t_f
    w_at = (b * w_b + row * w_r + place)[:, None] + n[None, :] * w_f
    if hops > 0:
        columns = tl.arange(0, 32)
        earlier = tl.load(dft + n[:, None] * 32 + columns[None, :])
        current = tl.load(dft + (n + 16)[:, None] * 32 + columns[None, :])
        average = tl.load(spectrum + s_at, mask=there, other=0.0)
        average16 = tl.load(spectrum + s16_at, mask=slot < slots, other=0.0)
        last = tl.load(tail + t_at, mask=there, other=0.0).to(tl.float32)
        begin = 0
        if own > 0:  # no frame reaches a token before its own hop
            begin = tl.maximum(phase + block * BLOCK_N - (slots - own), 0) // 16
        for hop in range(begin, hops):
            i = hop * 16 + n - phase
            weights = _mean_weights(
                q, lse, key, position, b, head, i, (i >= 0) & (i < length), before + i, q_b, q_h, q_i, kv_heads, new,
                window, scale, GROUP, D, BLOCK_D, WINDOWED, ROUNDED,
            )  # fmt: skip
            if PENDING:
                weights += tl.load(pending + w_at, mask=there & (i < 0)[None, :], other=0.0).to(tl.float32)
            frame = tl.dot(last, earlier, input_precision=PRODUCTS)
            frame = tl.dot(weights, current, acc=frame, input_precision=PRODUCTS)
            cosine, sine = tl.split(tl.reshape(frame * frame, [frame.shape[0], 16, 2]))
            is_bin0 = (n == 0)[None, :]
            average16 = DECAY * average16 + (1 - DECAY) * tl.sqrt(tl.sum(tl.where(is_bin0, sine, 0.0), 1))
            average = DECAY * average + (1 - DECAY) * tl.sqrt(cosine + tl.where(is_bin0, 0.0, sine))
            last = weights
        tl.store(spectrum + s_at, average, mask=there)
        tl.store(spectrum + s16_at, average16, mask=slot < slots)
        tl.store(tail + t_at, last, mask=there)
    if PENDING:
        i = hops * 16 + n - phase
        left = (n < rest) & (i >= 0) & (i < length)
        weights = _mean_weights(
            q, lse, key, position, b, head, i, left, before + i, q_b, q_h, q_i, kv_heads, new, window, scale,
            GROUP, D, BLOCK_D, WINDOWED, ROUNDED,
        )  # fmt: skip
        tl.store(pending + w_at, weights, mask=there & left[None, :])
