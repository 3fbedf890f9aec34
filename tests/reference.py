"""The slow truth: ReSSL in float64 numpy, loop by loop from the paper.

Gradients are central differences, so that there is no second derivation to
get wrong. Nothing here is shared with the library.
"""

import numpy as np

BN_EPSILON = 1e-5
BN_MOMENTUM = 0.9


def normalise(vector):
    return vector / np.sqrt(sum(value * value for value in vector))


def softmax(values):
    exponentials = [np.exp(value - max(values)) for value in values]
    return [value / sum(exponentials) for value in exponentials]


def relation(student, teacher, queue, student_temperature, teacher_temperature):
    """-Σ_k p2 log p1 of one image (equations 3 to 5)."""
    p1 = softmax(
        [normalise(student) @ key / student_temperature for key in queue]
    )
    p2 = softmax(
        [normalise(teacher) @ key / teacher_temperature for key in queue]
    )
    return -sum(b * np.log(a) for a, b in zip(p1, p2, strict=True))


def info_nce(student, teacher, queue, temperature):
    """-log softmax at the positive pair of one image (equation 1)."""
    columns = [normalise(student) @ normalise(teacher) / temperature]
    columns += [normalise(student) @ key / temperature for key in queue]
    return -np.log(softmax(columns)[0])


def entropy(embedding, queue, temperature):
    p = softmax([normalise(embedding) @ key / temperature for key in queue])
    return -sum(value * np.log(value) for value in p if value > 0)


class RingBuffer:
    """First in, first out, one key at a time."""

    def __init__(self, keys):
        self.keys = np.array(keys, np.float64)
        self.pointer = 0

    def enqueue(self, keys):
        for key in keys:
            self.keys[self.pointer] = normalise(key)
            self.pointer = (self.pointer + 1) % len(self.keys)


class Network:
    """Backbone x -> tanh(x A + a), projector -> ReLU(BN(. B)) C + c.

    Where A takes less than an image, one of its pixels, say, the backbone's
    values are averaged over the parts of the image.
    """

    def __init__(self, weights):
        self.weights = {k: np.array(v, np.float64) for k, v in weights.items()}
        hidden = self.weights["gamma"].shape
        self.moving_mean = np.zeros(hidden)
        self.moving_variance = np.ones(hidden)

    def __call__(self, images, weights=None, update=False):
        w = weights or self.weights
        x = np.reshape(images, (len(images), -1, len(w["backbone"])))
        x = np.tanh(x.astype(np.float64) @ w["backbone"] + w["backbone_bias"])
        x = x.mean(axis=1) @ w["hidden"]
        mean, variance = x.mean(axis=0), x.var(axis=0)
        if update:
            # Keras' fused and plain kernels differ in the variance (with or
            # without Bessel's correction); 2-D inputs take the plain one.
            self.moving_mean += (1 - BN_MOMENTUM) * (mean - self.moving_mean)
            self.moving_variance += (1 - BN_MOMENTUM) * (
                variance - self.moving_variance
            )
        x = (x - mean) / np.sqrt(variance + BN_EPSILON)
        x = np.maximum(x * w["gamma"] + w["beta"], 0.0)
        return x @ w["output"] + w["output_bias"]


class Trainer:
    """A linear predictor, SGD with momentum and L2.

    One crop, or multi-crop: the loss is the mean over all rows of all student
    views, each against the one teacher view. Two crops: student view i against
    teacher view 1 - i; the first teacher view goes into the queue.
    """

    def __init__(
        self,
        student,
        predictor,
        queue,
        *,
        student_temperature,
        teacher_temperature,
        infonce_temperature,
        teacher_momentum,
        warmup_steps,
        learning_rate,
        momentum,
        l2,
    ):
        self.student = Network(student)
        self.teacher = Network(student)
        self.predictor = np.array(predictor, np.float64)
        self.queue = RingBuffer(queue)
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature
        self.infonce_temperature = infonce_temperature
        self.teacher_momentum = teacher_momentum
        self.warmup_steps = warmup_steps
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.l2 = l2
        self.velocity = {}
        self.step_number = 0

    def alpha(self):
        if self.warmup_steps == 0:
            return 1.0
        return min(self.step_number / self.warmup_steps, 1.0)

    def step(self, strong, weak):
        """One training step on lists of views; returns what is reported."""
        m = self.teacher_momentum
        for name, value in self.teacher.weights.items():
            value *= m
            value += (1 - m) * self.student.weights[name]
        targets = [self.teacher(view, update=True) for view in weak]

        def loss(weights):
            return self._losses(strong, targets, weights)[0]

        variables = {**self.student.weights, "predictor": self.predictor}
        report = self._losses(strong, targets, variables)
        gradients = {
            name: difference(loss, variables, name) for name in variables
        }
        for view in strong:
            self.student(view, update=True)
        for name, value in variables.items():
            gradient = gradients[name] + self.l2 * value
            self.velocity[name] = (
                self.momentum * self.velocity.get(name, 0.0) + gradient
            )
            value -= self.learning_rate * self.velocity[name]
        self.queue.enqueue(targets[0])
        self.step_number += 1
        return report

    def _losses(self, strong, targets, variables):
        """(loss, relation, info_nce), means over all rows of all views."""
        relations, info_nces = [], []
        for number, view in enumerate(strong):
            target = targets[1 - number] if len(targets) == 2 else targets[0]
            embeddings = self.student(view, variables) @ variables["predictor"]
            for student, teacher in zip(embeddings, target, strict=True):
                relations.append(
                    relation(
                        student,
                        teacher,
                        self.queue.keys,
                        self.student_temperature,
                        self.teacher_temperature,
                    )
                )
                info_nces.append(
                    info_nce(
                        student,
                        teacher,
                        self.queue.keys,
                        self.infonce_temperature,
                    )
                )
        alpha = self.alpha()
        return (
            alpha * np.mean(relations) + (1 - alpha) * np.mean(info_nces),
            np.mean(relations),
            np.mean(info_nces),
        )


def difference(function, variables, name, epsilon=1e-6):
    gradient = np.zeros_like(variables[name])
    for index in np.ndindex(gradient.shape):
        values = []
        for sign in (1, -1):
            moved = dict(variables)
            moved[name] = variables[name].copy()
            moved[name][index] += sign * epsilon
            values.append(function(moved))
        gradient[index] = (values[0] - values[1]) / (2 * epsilon)
    return gradient
