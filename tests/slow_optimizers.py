"""Optimisers in numpy, one variable at a time: what the fast ones must equal.

Each takes a variable, its gradients and the learning rate of each step, and
returns the variable after the last one. `excluded` variables get neither
weight decay nor a trust ratio.
"""

import numpy as np


def ratio(weight, update, trust=1.0):
    norms = np.linalg.norm(weight), np.linalg.norm(update)
    return trust * norms[0] / norms[1] if min(norms) > 0 else 1.0


def sgd(
    weight,
    gradients,
    rates,
    *,
    excluded,
    weight_decay,
    momentum=0.9,
    nesterov=False,
):
    velocity = 0.0
    for gradient, rate in zip(gradients, rates, strict=True):
        if not excluded:
            gradient = gradient + weight_decay * weight
        velocity = momentum * velocity + gradient
        step = gradient + momentum * velocity if nesterov else velocity
        weight = weight - rate * step
    return weight


def lars(
    weight,
    gradients,
    rates,
    *,
    excluded,
    weight_decay,
    momentum=0.9,
    trust=0.001,
):
    velocity = 0.0
    for gradient, rate in zip(gradients, rates, strict=True):
        if not excluded:
            gradient = gradient + weight_decay * weight
            gradient = gradient * ratio(weight, gradient, trust)
        velocity = momentum * velocity + gradient
        weight = weight - rate * velocity
    return weight


def moments(gradients, beta_1, beta_2):
    """Adam's two moments of each step, corrected for their start at 0."""
    mean = mean_square = 0.0
    for step, gradient in enumerate(gradients, start=1):
        mean = beta_1 * mean + (1 - beta_1) * gradient
        mean_square = beta_2 * mean_square + (1 - beta_2) * gradient**2
        yield mean / (1 - beta_1**step), mean_square / (1 - beta_2**step)


def adamw(
    weight,
    gradients,
    rates,
    *,
    excluded,
    weight_decay,
    momentum=0.9,
    beta_2=0.999,
    epsilon=1e-7,
):
    pairs = moments(gradients, momentum, beta_2)
    for step, ((mean, mean_square), rate) in enumerate(
        zip(pairs, rates, strict=True), start=1
    ):
        if not excluded:
            weight = weight - rate * weight_decay * weight
        # Keras adds epsilon to the root before its correction.
        epsilon_now = epsilon / np.sqrt(1 - beta_2**step)
        weight = weight - rate * mean / (np.sqrt(mean_square) + epsilon_now)
    return weight


def lamb(
    weight,
    gradients,
    rates,
    *,
    excluded,
    weight_decay,
    momentum=0.9,
    beta_2=0.999,
    epsilon=1e-6,
):
    pairs = moments(gradients, momentum, beta_2)
    for (mean, mean_square), rate in zip(pairs, rates, strict=True):
        update = mean / (np.sqrt(mean_square) + epsilon)
        if not excluded:
            update = update + weight_decay * weight
            update = update * ratio(weight, update)
        weight = weight - rate * update
    return weight


OPTIMIZERS = {
    "sgd": sgd,
    "lars": lars,
    "adam": adamw,
    "adamw": adamw,
    "lamb": lamb,
}
