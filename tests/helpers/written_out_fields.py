"""Every field written out in float64 NumPy, sample by sample, from the formulas of its paper.

Coordinates count as divided by S/√d; r̂ is the distance over √d. `own` says how a sample stands to
the targets z: "own" leaves z_i out of the field of x_i, "two_fold" leaves out its half, and "kept"
and "fresh" leave nothing out. A field is a function of (x, y, z, o, tau, alpha, own) and of the
options that it reads; o is None without guidance. `linear` adds linear guidance to an attraction.
"""

import numpy as np


def norms(x, s):
    return np.linalg.norm(x[:, None] - s[None], axis=-1) / np.sqrt(x.shape[1])


def left_out(g, m, own):
    i, j = np.arange(g)[:, None], np.arange(m)[None]
    if own == "own":
        return i == j
    if own == "two_fold":
        return (i < g // 2) == (j < g // 2)
    return np.zeros((g, m), bool)


def linear(attraction, x, y, z, o, alpha, own):
    """T_y - T_z, and (α - 1)(T_y - T_o) where there are unconditional samples."""
    v = attraction(x, y, np.zeros((len(x), len(y)), bool))
    v = v - attraction(x, z, left_out(len(x), len(z), own))
    if o is not None:
        t_y = attraction(x, y, np.zeros((len(x), len(y)), bool))
        v = v + (alpha - 1) * (t_y - attraction(x, o, np.zeros((len(x), len(o)), bool)))
    return v


def pulled(x, s, weights):
    """Σ_j w_ij (s_j - x_i), one sample at a time."""
    return np.stack([(w[:, None] * (s - one)).sum(0) for one, w in zip(x, weights, strict=True)])


def kernel_gradient(x, y, z, o, tau, alpha, own, kernel="laplacian"):
    def attraction(x, s, out):
        r = norms(x, s)
        k = np.exp(-r / tau) if kernel == "laplacian" else np.exp(-(r**2) / (2 * tau**2))
        k[out] = 0
        w = k / k.sum(1, keepdims=True)
        per = 1 / np.where(r > 0, r * tau, np.inf) if kernel == "laplacian" else 1 / tau**2
        return pulled(x, s, w * per)

    return linear(attraction, x, y, z, o, alpha, own)


def sharp(x, y, z, o, tau, alpha, own, kernel="laplacian"):
    def attraction(x, s, out):
        r = norms(x, s)
        if kernel == "laplacian":
            k = np.exp(-r / tau)
            h = tau * (r + tau) * k
        else:
            k = np.exp(-(r**2) / (2 * tau**2))
            h = tau**2 * k
        k[out], h[out] = 0, 0
        return pulled(x, s, k / h.sum(1, keepdims=True))

    return linear(attraction, x, y, z, o, alpha, own)


def kl_chi2(x, y, z, o, tau, alpha, own):
    def mean_kernel(s, out):
        k = np.exp(-(norms(x, s) ** 2) / (2 * tau**2))
        k[out] = 0
        return k.sum(1) / (~out).sum(1)

    p = mean_kernel(y, np.zeros((len(x), len(y)), bool))
    q = mean_kernel(z, left_out(len(x), len(z), own))
    ratio = np.clip(p / q, 0.1, 10)
    score = kernel_gradient(x, y, z, o, tau, alpha, own, kernel="gaussian")
    return (ratio + 1 / ratio)[:, None] * score


def joint_affinities(x, y, z, o, tau, alpha, own, kernel="laplacian", normalize="both"):
    """Algorithm 2's softmaxes over [z, o, y], and the weights of o (rule W)."""
    o = x[:0] if o is None else o
    out = np.concatenate(
        [left_out(len(x), len(z), own), np.zeros((len(x), len(o) + len(y)), bool)], axis=1
    )
    r = norms(x, np.concatenate([z, o, y]))
    k = np.exp(-r / tau) if kernel == "laplacian" else np.exp(-(r**2) / (2 * tau**2))
    k[out] = 0
    a = k / k.sum(1, keepdims=True)
    if normalize == "both":
        a = np.sqrt(a * k / k.sum(0, keepdims=True))
    acting = {"own": len(z) - 1, "two_fold": len(z) // 2}.get(own, len(z))
    a[:, len(z) : len(z) + len(o)] *= (alpha - 1) * acting / max(len(o), 1)
    return a[:, : len(z) + len(o)], a[:, len(z) + len(o) :], np.concatenate([z, o])


def mean_shift(x, y, z, o, tau, alpha, own, combine="crossed", **kernel):
    a_z, a_y, z = joint_affinities(x, y, z, o, tau, alpha, own, **kernel)
    mass_y, mass_z = a_y.sum(1, keepdims=True), a_z.sum(1, keepdims=True)
    if combine == "crossed":
        return mass_z * (a_y @ y) - mass_y * (a_z @ z)
    return a_y @ y / mass_y - a_z @ z / mass_z


def bias_corrected(x, y, z, o, tau, alpha, own, **kernel):
    a_z, a_y, z = joint_affinities(x, y, z, o, tau, alpha, own, **kernel)
    found = 0
    for sign, a, s in ((1, a_y, y), (-1, a_z, z)):
        a = a / a.sum(1, keepdims=True)
        corrected = a * (1 + a - (a**2).sum(1, keepdims=True))
        found = found + sign * corrected @ s
    return found


def log_sum_exp(a, axis):
    largest = a.max(axis, keepdims=True)
    return (largest + np.log(np.exp(a - largest).sum(axis, keepdims=True))).squeeze(axis)


def plan(cost, out, b, iterations):
    """Sinkhorn on logarithms, rows first and columns last; the plan itself."""
    m = np.where(out, -1e300, -cost)
    f, h = np.zeros(len(m)), np.zeros(m.shape[1])
    with np.errstate(divide="ignore"):
        log_b = np.log(b / b.sum())
    for _ in range(iterations):
        f = -np.log(len(m)) - log_sum_exp(m + h[None], 1)
        h = log_b - log_sum_exp(m + f[:, None], 0)
    return np.exp(m + f[:, None] + h[None])


def plan_mean(x, s, pi):
    return pi @ s / pi.sum(1, keepdims=True)


def sinkhorn(x, y, z, o, tau, alpha, own, cost="squared", iterations=10):
    def costs(s):
        return norms(x, s) ** 2 / tau if cost == "squared" else norms(x, s) / tau

    o = x[:0] if o is None else o
    acting = {"own": len(z) - 1, "two_fold": len(z) // 2}.get(own, len(z))
    weight = (alpha - 1) * acting / max(len(o), 1)
    b = np.concatenate([np.ones(len(z)), np.full(len(o), max(weight, 1e-6))])
    z_out = np.concatenate(
        [left_out(len(x), len(z), own), np.zeros((len(x), len(o)), bool)], axis=1
    )
    negatives = np.concatenate([z, o])
    to_y = plan(costs(y), np.zeros((len(x), len(y)), bool), np.ones(len(y)), iterations)
    to_z = plan(costs(negatives), z_out, b, iterations)
    return plan_mean(x, y, to_y) - plan_mean(x, negatives, to_z)


def w_flow(x, y, z, o, tau, alpha, own, cost="squared", iterations=10):
    d = x.shape[1]

    def attraction(x, s, out):
        r = norms(x, s) * np.sqrt(d)
        over = 0.5 * r**2 / (tau * d) if cost == "squared" else r / (tau * np.sqrt(d))
        return plan_mean(x, s, plan(over, out, np.ones(len(s)), iterations)) - x

    return linear(attraction, x, y, z, o, alpha, own)


def energy(x, y, z, o, tau, alpha, own, neighbours=0):
    def attraction(x, s, out):
        found = []
        for i, one in enumerate(x):
            r = np.linalg.norm(s - one, axis=1) / np.sqrt(x.shape[1])
            chosen = [j for j in np.argsort(r) if not out[i, j]]
            if neighbours:  # a sample is none of its own neighbours
                chosen = [j for j in chosen if r[j] > 1e-9]
            chosen = chosen[: neighbours or None]
            directions = [(s[j] - one) / r[j] if r[j] > 1e-9 else 0 * one for j in chosen]
            found.append(np.sum(directions, axis=0) / len(chosen))
        return np.stack(found)

    return linear(attraction, x, y, z, o, alpha, own)


def fair_energy(x, y, z, o, tau, alpha, own):
    def mean_direction(s, out):
        r = norms(x, s)
        w = np.where(out, 0, 1 / np.where(r > 0, r, np.inf)) / (~out).sum(1, keepdims=True)
        return pulled(x, s, w)

    share = 1 - (1 - 0.95) / len(z)
    attracted = mean_direction(y, np.zeros((len(x), len(y)), bool))
    v = attracted - share * mean_direction(z, left_out(len(x), len(z), own))
    if o is None:
        return v
    nothing = np.zeros((len(x), len(o)), bool)
    return v + (alpha - 1) * (attracted - mean_direction(o, nothing))


def mmd(x, y, z, o, tau, alpha, own):
    def attraction(x, s, out):
        k = np.exp(-(norms(x, s) ** 2) / (2 * tau**2)) / tau**2
        k[out] = 0
        return pulled(x, s, k / (~out).sum(1, keepdims=True))

    return linear(attraction, x, y, z, o, alpha, own)


def sliced(x, y, z, o, tau, alpha, own, directions):
    """With as many real samples of either kind as generated ones."""

    def moved(s):
        found = np.zeros_like(x)
        for theta in directions:
            order = np.argsort(x @ theta)
            targets = np.sort(s @ theta)
            for rank, i in enumerate(order):
                found[i] += (targets[rank] - x[i] @ theta) * theta
        return found / len(directions)

    v = moved(y)
    return v if o is None else v + (alpha - 1) * (moved(y) - moved(o))
