"""Published updates in float64, a few lines each, to hold the optimisers of configs against.

Each is a function of (weights, gradients of every step, rate of every step, config) that returns the weights after all of
them; weights are one tensor or more, and what is summed over all weights is summed over all of these.
"""

from __future__ import annotations

import math

import torch


def adamw(weights, gradients, rates, config, keep=lambda name, x: x):
    """keep: what becomes of an average when it is stored."""
    (b1, b2), out = config.betas, []
    for i, x in enumerate(weights):
        m = v = torch.zeros_like(x)
        for t, (grads, lr) in enumerate(zip(gradients, rates, strict=True), 1):
            m = b1 * m + (1 - b1) * grads[i]
            v = b2 * v + (1 - b2) * grads[i] ** 2
            direction = (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + config.eps)
            x = x - lr * (direction + config.weight_decay * x)
            m, v = keep("exp_avg", m), keep("exp_avg_sq", v)
        out.append(x)
    return out


def radam(weights, gradients, rates, config):
    (b1, b2), out = config.betas, []
    longest = 2 / (1 - b2) - 1
    for i, x in enumerate(weights):
        m = v = torch.zeros_like(x)
        for t, (grads, lr) in enumerate(zip(gradients, rates, strict=True), 1):
            m, v = b1 * m + (1 - b1) * grads[i], b2 * v + (1 - b2) * grads[i] ** 2
            x = x - lr * config.weight_decay * x
            length = longest - 2 * t * b2**t / (1 - b2**t)
            if length > 5:
                r = ((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)) ** 0.5
                x = x - lr * r * m / (1 - b1**t) * (1 - b2**t) ** 0.5 / (v.sqrt() + config.eps)
            else:
                x = x - lr * m / (1 - b1**t)
        out.append(x)
    return out


def ademamix(weights, gradients, rates, config):
    (b1, b2), own, out = config.betas, config.own(), []
    for i, x in enumerate(weights):
        m = v = slow = torch.zeros_like(x)
        for t, (grads, lr) in enumerate(zip(gradients, rates, strict=True), 1):
            alpha = min(t * own.alpha / own.warmup, own.alpha)
            half = [math.log(0.5) / math.log(b) - 1 for b in (b1, own.beta3)]  # half-lives, which rise in a line
            b3 = min(0.5 ** (1 / (half[0] + min(t / own.warmup, 1) * (half[1] - half[0]) + 1)), own.beta3)
            m, v, slow = (b * old + (1 - b) * new for b, old, new in
                          ((b1, m, grads[i]), (b2, v, grads[i] ** 2), (b3, slow, grads[i])))  # fmt: skip
            direction = (m / (1 - b1**t) + alpha * slow) / ((v / (1 - b2**t)).sqrt() + config.eps)
            x = x - lr * (direction + config.weight_decay * x)
        out.append(x)
    return out


def grams(weights, gradients, rates, config):
    (b1, b2), out = config.betas, []
    for i, x in enumerate(weights):
        m = v = torch.zeros_like(x)
        for t, (grads, lr) in enumerate(zip(gradients, rates, strict=True), 1):
            m, v = b1 * m + (1 - b1) * grads[i], b2 * v + (1 - b2) * grads[i] ** 2
            size = ((m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + config.eps)).abs()
            x = x - lr * (size * grads[i].sign() + config.weight_decay * x)
        out.append(x)
    return out


def lion(weights, gradients, rates, config):
    (b1, b2), out = config.betas, []
    for i, x in enumerate(weights):
        m = torch.zeros_like(x)
        for grads, lr in zip(gradients, rates, strict=True):
            x = x - lr * ((b1 * m + (1 - b1) * grads[i]).sign() + config.weight_decay * x)
            m = b2 * m + (1 - b2) * grads[i]
        out.append(x)
    return out


def schedule_free(weights, gradients, rates, config):
    """y, at which gradients are taken; `schedule_free.averages` are then x."""
    (b1, b2), own, out = config.betas, config.own(), []
    schedule_free.averages = []
    for i, start in enumerate(weights):
        x = z = y = start
        v, counted, highest = torch.zeros_like(x), 0.0, 0.0
        for t, (grads, lr) in enumerate(zip(gradients, rates, strict=True), 1):
            highest = max(highest, lr)
            v = b2 * v + (1 - b2) * grads[i] ** 2
            z = z - lr * (grads[i] / ((v / (1 - b2**t)).sqrt() + config.eps) + config.weight_decay * y)
            count = t**own.r * highest**own.rate_power
            counted += count
            x = (1 - count / counted) * x + count / counted * z
            y = (1 - b1) * z + b1 * x
        out.append(y)
        schedule_free.averages.append(x)
    return out


def prodigy(weights, gradients, rates, config):
    (b1, b2), own = config.betas, config.own()
    b3 = math.sqrt(b2)
    x, d, r = list(weights), own.d0, 0.0
    m, v, s = ([torch.zeros_like(w) for w in weights] for _ in range(3))
    for t, (grads, lr) in enumerate(zip(gradients, rates, strict=True), 1):
        correction = math.sqrt(1 - b2**t) / (1 - b1**t) if own.bias_correction else 1
        c = d * lr * correction
        r = b3 * r + (1 - b3) * c * d * sum((g * (w - y)).sum() for g, w, y in zip(grads, weights, x, strict=True))
        s = [b3 * a + (1 - b3) * c * d * g for a, g in zip(s, grads, strict=True)]
        m = [b1 * a + (1 - b1) * d * g for a, g in zip(m, grads, strict=True)]
        v = [b2 * a + (1 - b2) * (d * g) ** 2 for a, g in zip(v, grads, strict=True)]
        d = max(d, own.d_coef * float(r / sum(a.abs().sum() for a in s)))
        x = [y - c * (a / (q.sqrt() + d * config.eps) + config.weight_decay * y) for y, a, q in zip(x, m, v, strict=True)]
    prodigy.distance = d
    return x


def dog(weights, gradients, rates, config):
    x, squares = list(weights), config.eps
    furthest = config.own().relative_start * (1 + sum(w.square().sum() for w in weights).sqrt())
    for grads, lr in zip(gradients, rates, strict=True):
        squares += sum(g.square().sum() for g in grads)
        furthest = max(furthest, sum((y - w).square().sum() for y, w in zip(x, weights, strict=True)).sqrt())
        eta = lr * furthest / squares.sqrt()
        x = [y - eta * (g + config.weight_decay * y) for y, g in zip(x, grads, strict=True)]
    return x


def adafactor(weights, gradients, rates, config):
    own, out = config.own(), []

    def rms(y):
        return y.square().mean().sqrt()

    for i, x in enumerate(weights):
        rows = columns = v = 0
        for t, (grads, lr) in enumerate(zip(gradients, rates, strict=True), 1):
            square, b2 = grads[i] ** 2, 1 - t**-own.decay
            rows, columns = b2 * rows + (1 - b2) * square.sum(-1), b2 * columns + (1 - b2) * square.sum(0)
            v = torch.outer(rows, columns) / rows.sum() if x.ndim > 1 else b2 * v + (1 - b2) * square
            update = grads[i] / v.sqrt()
            step = max(own.smallest_scale, rms(x)) * min(lr, 1 / math.sqrt(t))
            x = x - lr * config.weight_decay * x
            x = x - step * update / max(1, rms(update) / own.clip_threshold)
        out.append(x)
    return out


def soap(weights, gradients, rates, config):
    """Algorithm 3: Adam in the bases of L and R; its first step only makes them. Every column of a basis may have either sign,
    which changes nothing."""
    (b1, b2), own, out = config.betas, config.own(), []
    for i, x in enumerate(weights):
        m, sides = torch.zeros_like(x), range(x.ndim) if x.ndim == 2 else ()

        def rotated(y, bases):
            return bases[0].T @ y @ bases[1] if bases else y

        grams = [(1 - b2) * (g @ g.T) for g in (gradients[0][i], gradients[0][i].T)] if sides else []
        bases = [torch.linalg.eigh(gram)[1].flip(1) for gram in grams]
        v = torch.zeros_like(x)
        for t, (grads, lr) in enumerate(list(zip(gradients, rates, strict=True))[1:], 1):
            g = grads[i]
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * rotated(g, bases) ** 2
            step = lr * math.sqrt(1 - b2**t) / (1 - b1**t)
            update = rotated(m, bases) / (v.sqrt() + config.eps)
            x = x - step * (bases[0] @ update @ bases[1].T if bases else update)
            x = x - lr * config.weight_decay * x
            grams = [b2 * gram + (1 - b2) * (h @ h.T) for gram, h in zip(grams, (g, g.T), strict=True)] if sides else []
            if t % own.every == 0:
                for side in sides:
                    product = grams[side] @ bases[side]
                    order = torch.argsort((bases[side] * product).sum(0), descending=True)
                    v = v.index_select(side, order)
                    bases[side] = torch.linalg.qr(product[:, order].float())[0].to(x)
        out.append(x)
    return out
