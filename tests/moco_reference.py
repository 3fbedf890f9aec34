"""MoCo v2 in float64 numpy, written from its two papers alone.

He et al., Momentum Contrast, https://arxiv.org/abs/1911.05722 (algorithm 1),
and Chen et al., Improved Baselines, https://arxiv.org/abs/2003.04297 (the head
of two layers). Sample by sample, gradients by hand, nothing shared with the
library or with `reference`. There is no batch normalisation, so nothing to
shuffle.
"""

import numpy as np


class Encoder:
    """x -> tanh(x A + a) -> ReLU(. B + b) C + c, to unit length."""

    def __init__(self, weights):
        self.weights = {k: np.array(v, np.float64) for k, v in weights.items()}

    def forward(self, image):
        """All that `backward` needs, for one flat image."""
        w = self.weights
        feature = np.tanh(image @ w["A"] + w["a"])
        hidden = np.maximum(feature @ w["B"] + w["b"], 0.0)
        output = hidden @ w["C"] + w["c"]
        length = np.sqrt(np.sum(output**2))
        return image, feature, hidden, length, output / length

    def backward(self, passed, gradient):
        """Gradients of the weights from the one of the unit vector."""
        image, feature, hidden, length, unit = passed
        w = self.weights
        output = (gradient - unit * (unit @ gradient)) / length
        at_hidden = np.where(hidden > 0, w["C"] @ output, 0.0)
        at_feature = (w["B"] @ at_hidden) * (1.0 - feature**2)
        return {
            "A": np.outer(image, at_feature),
            "a": at_feature,
            "B": np.outer(feature, at_hidden),
            "b": at_hidden,
            "C": np.outer(hidden, output),
            "c": output,
        }


class MoCo:
    """Two encoders, a first-in-first-out queue, SGD with weight decay.

    Args:
        weights: of both encoders.
        queue: (K, D) unit vectors, the oldest first.
        m: momentum of the key encoder.
        temperature: of InfoNCE.
        sgd_momentum: of the optimiser.
        weight_decay: of the optimiser, in the gradient.
    """

    def __init__(
        self, weights, queue, *, m, temperature, sgd_momentum, weight_decay
    ):
        self.query_encoder = Encoder(weights)
        self.key_encoder = Encoder(weights)
        self.queue = [np.array(key, np.float64) for key in queue]
        self.m = m
        self.temperature = temperature
        self.sgd_momentum = sgd_momentum
        self.weight_decay = weight_decay
        self.buffers = {
            name: np.zeros_like(value)
            for name, value in self.query_encoder.weights.items()
        }

    def step(self, for_query, for_key, learning_rate):
        """One step on two views, (B, H, W, 3) each; returns the loss.

        The key encoder follows at the step's start. In algorithm 1 it does at
        the end, which is the same keys: both start alike.
        """
        w = self.query_encoder.weights
        for name, value in self.key_encoder.weights.items():
            value[...] = self.m * value + (1.0 - self.m) * w[name]

        batch = len(for_query)
        losses, keys = [], []
        gradients = {name: np.zeros_like(value) for name, value in w.items()}
        for x_q, x_k in zip(for_query, for_key, strict=True):
            passed = self.query_encoder.forward(np.float64(x_q).ravel())
            q = passed[-1]
            k = self.key_encoder.forward(np.float64(x_k).ravel())[-1]
            candidates = [k, *self.queue]  # the positive is number 0
            logits = np.array([q @ c / self.temperature for c in candidates])
            p = np.exp(logits - logits.max())
            p /= p.sum()
            losses.append(-np.log(p[0]))
            keys.append(k)
            p[0] -= 1.0  # the gradient of the cross-entropy
            at_q = p @ np.array(candidates) / (self.temperature * batch)
            for name, value in self.query_encoder.backward(
                passed, at_q
            ).items():
                gradients[name] += value

        for name, value in w.items():
            gradient = gradients[name] + self.weight_decay * value
            self.buffers[name] = (
                self.sgd_momentum * self.buffers[name] + gradient
            )
            value -= learning_rate * self.buffers[name]
        self.queue = [*self.queue, *keys][batch:]
        return np.mean(losses)
