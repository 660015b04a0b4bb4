"""The U-Net in NumPy, written out in float64: the map that each of its blocks gives."""

import numpy as np


def silu(x):
    return x / (1 + np.exp(-x))


def group_norm(x, p, groups):
    b, h, w, d = x.shape
    parts = x.reshape(b, h * w, groups, d // groups)
    centred = parts - parts.mean((1, 3), keepdims=True)
    normed = centred / np.sqrt((centred**2).mean((1, 3), keepdims=True) + 1e-6)
    return normed.reshape(x.shape) * p["scale"] + p["bias"]


def conv(x, p, stride=1):
    size = len(p["kernel"])
    pad = size // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows = range(0, x.shape[1] - size + 1, stride)
    columns = range(0, x.shape[2] - size + 1, stride)
    windows = np.stack(
        [np.stack([x[:, i : i + size, j : j + size] for j in columns], 1) for i in rows], 1
    )
    return np.einsum("bijklc,klcd->bijd", windows, p["kernel"]) + p["bias"]


def linear(x, p):
    return x @ p["kernel"] + p["bias"]


def residual(x, p, groups, condition=None, skip=None):
    x = x if skip is None else np.concatenate([x, skip], -1)
    y = conv(silu(group_norm(x, p["first_norm"], groups)), p["first_conv"])
    y = group_norm(y, p["second_norm"], groups)
    if condition is not None:
        shift, scale = np.split(linear(silu(condition), p["modulation"]["linear"]), 2, axis=-1)
        y = y * (1 + scale[:, None, None]) + shift[:, None, None]
    y = conv(silu(y), p["second_conv"])
    return y + (conv(x, p["residual_conv"]) if "residual_conv" in p else x)


def attention(x, p, groups, heads):
    b, h, w, d = x.shape
    y = group_norm(x, p["norm"], groups).reshape(b, h * w, d)
    qkv = linear(y, p["attention"]["qkv"]).reshape(b, h * w, 3, heads, d // heads)
    q, k, v = np.moveaxis(qkv, 2, 0)
    logits = np.einsum("bqnd,bknd->bnqk", q, k) / np.sqrt(d // heads)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    y = np.einsum("bnqk,bknd->bqnd", weights, v).reshape(b, h * w, d)
    return x + linear(y, p["attention"]["out"]).reshape(x.shape)


def upsample(x, p):
    return conv(np.kron(x, np.ones((1, 2, 2, 1))), p["conv"])


def embedded(p, labels, styles, alpha):
    """The condition: class, styles, and 0.02 times the embedding of alpha."""
    angles = alpha[:, None] * 10000.0 ** (-np.arange(128) / 128)
    e = p["scale_embedding"]
    x = linear(np.concatenate([np.cos(angles), np.sin(angles)], -1), e["hidden"])
    x = linear(silu(x), e["out"])
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * e["norm"]["scale"]
    books = p["style_books"]
    of_styles = sum(books[k][styles[:, k]] for k in range(len(books)))
    return p["class_embedding"]["embedding"][labels] + of_styles + 0.02 * x


def maps(model, p, noise, labels, styles, alpha):
    """{name: map} of each block in turn, and "images"."""
    g, heads, size = model.groups, model.num_heads, model.patch_size
    found = {}
    condition = None
    if model.condition_width:
        condition = found["condition"] = embedded(p["condition"], labels, styles, alpha)

    def block(x, half, level, number, side, skip=None):
        name = f"{half}{level}_block{number}"
        x = found[name] = residual(x, p[name], g, condition, skip)
        if side in model.attention_sides:
            name = f"{half}{level}_attention{number}"
            x = found[name] = attention(x, p[name], g, heads)
        return x

    side = model.image_size // size
    b, *_, c = noise.shape
    x = noise.reshape(b, side, size, side, size, c).swapaxes(2, 3).reshape(b, side, side, -1)
    x = found["input_conv"] = conv(x, p["input_conv"])
    skips, last = [x], len(model.multipliers) - 1
    for level in range(last + 1):
        for number in range(model.blocks_per_level):
            x = block(x, "down", level, number, side >> level)
            skips.append(x)
        if level < last:
            name = f"down{level}_downsample"
            x = found[name] = conv(x, p[name]["conv"], stride=2)
            skips.append(x)
    for name in ("middle_block0", "middle_attention", "middle_block1"):
        of = attention(x, p[name], g, heads) if "attention" in name else None
        x = found[name] = residual(x, p[name], g, condition) if of is None else of
    for level in range(last, -1, -1):
        for number in range(model.blocks_per_level + 1):
            x = block(x, "up", level, number, side >> level, skips.pop())
        if level:
            x = found[f"up{level}_upsample"] = upsample(x, p[f"up{level}_upsample"])
    assert not skips
    x = conv(silu(group_norm(x, p["output_norm"], g)), p["output_conv"])
    x = x.reshape(b, side, side, size, size, -1).swapaxes(2, 3)
    found["images"] = x.reshape(b, side * size, side * size, -1)
    return found
