"""ReSSL, the method, as a Keras model: `train_step` is the paper's page."""

import numbers

import tensorflow as tf
from tensorflow import keras

from ressl_tf import accumulation
from ressl_tf import batch_norm
from ressl_tf import distribute
from ressl_tf import keras_compat
from ressl_tf import losses
from ressl_tf import optimizers
from ressl_tf.key_queue import KeyQueue

# What `train_step` measures, averaged over an epoch as Keras does.
METRICS = (
    "loss",
    "relation",
    "info_nce",
    "target_entropy",
    "student_entropy",
    "agreement",
    "embedding_std",
)


class ReSSL(keras_compat.Model):
    """Relational self-supervised learning of an image encoder.

    The student learns to have, towards a queue of past embeddings, the same
    similarities as an exponential-moving-average teacher that sees a weaker
    augmentation of the same image. Train it as any Keras model:

        model = ressl_tf.ReSSL(backbone, projector, predictor)
        model.compile(ressl_tf.make_optimizer("sgd", 0.06, weight_decay=5e-4))
        model.fit(dataset, epochs=200, steps_per_epoch=195)

    An element of the dataset is {"student": views, "teacher": views}, each a
    tuple of float32 (B, H, W, 3) images: one and one (the paper's default),
    several student views and one for the teacher (multi-crop), or two and two
    (symmetric: student view i is trained on the teacher of view 1 - i).

    `fit` reports, over the batch: `loss` and its parts `relation` and
    `info_nce`; `target_entropy` and `student_entropy` of the two relations in
    nats (both near log K: nothing is learnt); `agreement`, how often student
    and teacher name the same nearest key; `embedding_std`, the deviation of
    the student's normalised embeddings times sqrt(D): about 1 when healthy, 0
    when all embeddings are the same.

    Attributes:
        student: `Branch` that is trained: `student.backbone`,
            `student.projector`.
        teacher: `Branch` that follows the student by moving average.
        predictor: `keras.Model` on the student's side, or None.
        queue: `KeyQueue`, the memory.
        step: () int64 variable, number of steps done.
        bn_splits: number of groups of the batch that batch normalisation
            treats apart, or None if all of the batch shares its statistics.

    Batch normalisation: with a predictor, statistics of the global batch.
    Without one, networks made with `bn_splits` keep the task from being solved
    by them: the teacher then sees the batch in another order (shuffled BN),
    which is restored afterwards.

    Args:
        backbone: functional or built sequential `keras.Model` from
            (B, H, W, 3) images to (B, C) features; f of the paper.
        projector: built `keras.Model` from (B, C) to (B, D); g of the paper.
        predictor: built `keras.Model` from (B, D) to (B, D), q of the paper,
            or None for the paper's earlier version.
        queue_size: K; smaller than the data set.
        student_temperature: τ_s, above 0.
        teacher_temperature: τ_t, above 0 and below τ_s, so that the target is
            the sharper of the two.
        infonce_temperature: temperature of the InfoNCE loss, above 0; the
            paper gives none. Defaults to `student_temperature`.
        teacher_momentum: weight of the old teacher in its moving average, in
            [0, 1], or a function of the step (`schedules.cosine_momentum`).
        alpha: weight of the relational loss against InfoNCE, in [0, 1], or a
            function of the step (`schedules.linear_alpha`).
        allow_flat_target: accept τ_t >= τ_s, which collapses: to reproduce
            the paper's ablation of temperatures.
        views: {"student": views, "teacher": views}, tuples of objects whose
            `finish` makes the images of a view, where the data set leaves
            that to the device (`data.make_train_dataset`, `augment_on`).
            None: the data set gives images.
        seed: int, of the queue's initial keys.
        name: name of the model.

    Raises:
        ValueError: for an argument out of its range, networks that do not
            fit each other, or batch normalisation that would not be the same
            on all replicas.
    """

    def __init__(
        self,
        backbone,
        projector,
        predictor=None,
        *,
        queue_size=65536,
        student_temperature=0.1,
        teacher_temperature=0.04,
        infonce_temperature=None,
        teacher_momentum=0.99,
        alpha=1.0,
        allow_flat_target=False,
        views=None,
        seed=0,
        name="ressl",
    ):
        super().__init__(name=name)
        if infonce_temperature is None:
            infonce_temperature = student_temperature
        _check_temperatures(
            student_temperature,
            teacher_temperature,
            infonce_temperature,
            allow_flat_target,
        )
        embedding_dim = _check_networks(backbone, projector, predictor)
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature
        self.infonce_temperature = infonce_temperature
        self.teacher_momentum = _as_schedule(
            "teacher_momentum", teacher_momentum
        )
        self.alpha = _as_schedule("alpha", alpha)
        self._finish = _finisher(views)

        networks = [backbone, projector]
        if predictor is not None:
            networks.append(predictor)
        self.bn_splits = batch_norm.check(networks)

        self.student = Branch(backbone, projector, name="student")
        self.teacher = Branch(
            batch_norm.copy(backbone),
            batch_norm.copy(projector),
            name="teacher",
        )
        self.predictor = predictor
        self.queue = KeyQueue(queue_size, embedding_dim, seed=seed)
        self.step = self.add_weight(
            name="step",
            shape=(),
            dtype="int64",
            initializer="zeros",
            trainable=False,
            **keras_compat.STATE_WEIGHT,
        )
        self._means = [keras.metrics.Mean(name=metric) for metric in METRICS]
        self.built = True

    def train_step(self, data):
        """One step of the method, in the paper's order.

        Args:
            data: {"student": views, "teacher": views}, tuples of float32
                (B, H, W, 3) images, B on this replica; or what `views` finish.

        Returns:
            A dict of scalars, one for each of `METRICS`.
        """
        data = self._finish(data)
        momentum = self.teacher_momentum(self.step)
        alpha = self.alpha(self.step)

        # The teacher moves first, so that it has seen all past students.
        self._update_teacher(momentum)
        # One snapshot for both relations, taken before the new keys go in:
        # an image must not find itself.
        queue = tf.convert_to_tensor(self.queue.keys)  # (K, D)
        learnt = accumulation.accumulate(
            lambda part: self._learn(part, queue, alpha),
            data,
            self.gradient_accumulation_steps,
        )
        variables = self.trainable_variables
        gradients = keras_compat.unscale_gradients(
            self.optimizer, learnt.gradients
        )
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))

        self.queue.enqueue(learnt.keys)
        self.step.assign_add(1)
        return self._measure(learnt.objective, learnt.embedding)

    def _learn(self, data, queue, alpha):
        """Loss and gradients of a batch, or of a part of it."""
        targets = [
            self._embed_by_teacher(view) for view in data["teacher"]
        ]  # (B, D) each
        with tf.GradientTape() as tape:
            embeddings = [
                self._predict(self.student(view, training=True))
                for view in data["student"]
            ]  # (B, D) each
            objectives = [
                losses.blended_objective(
                    embedding,
                    target,
                    queue,
                    student_temperature=self.student_temperature,
                    teacher_temperature=self.teacher_temperature,
                    infonce_temperature=self.infonce_temperature,
                    alpha=alpha,
                )
                for embedding, target in _pair(embeddings, targets)
            ]
            objective = _mean(objectives)
            # Gradients are summed over replicas and parts: each gives its
            # share.
            shares = (
                distribute.num_replicas() * self.gradient_accumulation_steps
            )
            loss = keras_compat.scale_loss(
                self.optimizer, objective.loss / shares
            )
        return accumulation.Learnt(
            tape.gradient(loss, self.trainable_variables),
            objective,
            embeddings[0],
            targets[0],
        )

    def call(self, images, training=False):
        """Features of the student's backbone: what `predict` returns.

        Args:
            images: (B, H, W, 3) normalised images.
            training: whether batch statistics are used.

        Returns:
            (B, C) features.
        """
        return self.student.backbone(images, training=training)

    def compile(self, optimizer, gradient_accumulation_steps=1, **kwargs):
        """Keras' `compile`; the loss is the model's own.

        Args:
            optimizer: a Keras optimiser; it gets the student's and the
                predictor's variables. One of `make_optimizer` is told which
                of them are biases and normalisation; again with
                `model.optimizer`, nothing about it changes.
            gradient_accumulation_steps: how many equal parts of the batch
                are learnt from one after the other, at least 1: for batches
                whose activations do not fit. Without batch normalisation the
                result is the same; with it, each part has statistics (and
                `bn_splits` groups) of its own.
            **kwargs: `jit_compile`, `steps_per_execution` and so on.

        Raises:
            ValueError: if a loss or metrics are given, or for a number below
                1.
        """
        for argument in ("loss", "metrics", "loss_weights"):
            if kwargs.get(argument) is not None:
                raise ValueError(
                    f"`{argument}` must not be given: ReSSL has its own loss "
                    "and metrics. "
                    f"Received: {argument}={kwargs[argument]!r}"
                )
        if gradient_accumulation_steps < 1:
            raise ValueError(
                "`gradient_accumulation_steps` must be at least 1. Received: "
                f"gradient_accumulation_steps={gradient_accumulation_steps}"
            )
        self.gradient_accumulation_steps = gradient_accumulation_steps
        previous = keras_compat.unwrapped(getattr(self, "optimizer", None))
        super().compile(optimizer=optimizer, **kwargs)
        if keras_compat.unwrapped(self.optimizer) is not previous:
            networks = [self.student]
            if self.predictor is not None:
                networks.append(self.predictor)
            optimizers.exclude_by_role(self.optimizer, networks)
        with self.distribute_strategy.scope():
            keras_compat.build(self.optimizer, self.trainable_variables)

    @property
    def trainable_variables(self):
        """What the optimiser trains: student and predictor.

        The teacher's layers stay trainable, or their batch normalisation
        would ignore the batch; the teacher is left out here instead.
        """
        variables = list(self.student.trainable_variables)
        if self.predictor is not None:
            variables += self.predictor.trainable_variables
        return variables

    @property
    def trainable_weights(self):
        return self.trainable_variables

    @property
    def metrics(self):
        return self._means

    def _update_teacher(self, momentum):
        """teacher <- m teacher + (1 - m) student, trainable variables only."""

        def move(teacher, student):
            weight = tf.cast(momentum, teacher.dtype)
            teacher.assign(weight * teacher + (1.0 - weight) * student)

        distribute.update_variables(
            move,
            *(
                [
                    keras_compat.tf_variable(variable)
                    for variable in branch.trainable_variables
                ]
                for branch in (self.teacher, self.student)
            ),
        )

    def _embed_by_teacher(self, view):
        if self.bn_splits is None:
            return self.teacher(view, training=True)
        # Images must not share their statistics with the same images as on
        # the student's side: the task could be solved by that alone.
        step = tf.convert_to_tensor(self.step)
        seed = tf.stack([tf.constant(self.queue.seed, tf.int64), step])
        shuffled, restore = batch_norm.shuffle(view, seed)
        return restore(self.teacher(shuffled, training=True))

    def _predict(self, embedding):
        if self.predictor is None:
            return embedding
        return self.predictor(embedding, training=True)

    def _measure(self, objective, embedding):
        """Updates the running means by those of the global batch."""
        embedding = losses.normalize(embedding)  # (B, D)
        *values, mean, mean_square = distribute.mean(
            [
                *objective,
                tf.reduce_mean(embedding, axis=0),
                tf.reduce_mean(tf.square(embedding), axis=0),
            ]
        )
        values = dict(zip(objective._fields, values, strict=True))
        variance = tf.reduce_sum(mean_square - tf.square(mean))
        values["embedding_std"] = tf.sqrt(tf.maximum(variance, 0.0))
        for each in self._means:
            each.update_state(values[each.name])
        return {each.name: each.result() for each in self._means}


class Branch(keras.Model):
    """Backbone and projector in a row: g(f(x)) of the paper.

    Args:
        backbone: `keras.Model` from (B, H, W, 3) to (B, C).
        projector: `keras.Model` from (B, C) to (B, D).
        name: name of the model.
    """

    def __init__(self, backbone, projector, name):
        super().__init__(name=name)
        self.backbone = backbone
        self.projector = projector
        self.built = True

    def call(self, images, training=False):
        """(B, H, W, 3) images -> (B, D) embeddings, not normalised."""
        features = self.backbone(images, training=training)
        return self.projector(features, training=training)


def _finisher(views):
    """A function that finishes a batch's views, or leaves it as it is."""
    if views is None:
        return lambda data: data
    # Bound methods, which Keras does not take for layers of the model: views
    # have no weights, and belong to the data.
    methods = {
        role: [view.finish for view in views[role]]
        for role in ("student", "teacher")
    }

    def finish(data):
        return {
            role: tuple(
                finish_view(view)
                for finish_view, view in zip(
                    methods[role], data[role], strict=True
                )
            )
            for role in methods
        }

    return finish


def _pair(embeddings, targets):
    """Which target each student view is trained on."""
    if len(targets) == 1:
        return [(embedding, targets[0]) for embedding in embeddings]
    if len(targets) == 2 and len(embeddings) == 2:
        return [(embeddings[0], targets[1]), (embeddings[1], targets[0])]
    raise ValueError(
        "A batch must have one teacher view and any number of student views, "
        "or two of each. "
        f"Received: {len(embeddings)} student views and {len(targets)} "
        "teacher views"
    )


def _mean(objectives):
    """Objectives of V views, (B,) each -> one objective of scalars."""
    return losses.Objective(
        *(
            tf.reduce_mean(tf.stack(values))
            for values in zip(*objectives, strict=True)
        )
    )


def _as_schedule(argument, value):
    if callable(value):
        return value
    if not isinstance(value, numbers.Real) or not 0 <= value <= 1:
        raise ValueError(
            f"`{argument}` must be in [0, 1], or a function of the step. "
            f"Received: {argument}={value!r}"
        )
    return lambda step: tf.constant(value, tf.float32)


def _check_temperatures(student, teacher, infonce, allow_flat_target):
    for argument, value in (
        ("student_temperature", student),
        ("teacher_temperature", teacher),
        ("infonce_temperature", infonce),
    ):
        if not value > 0:
            raise ValueError(
                f"`{argument}` must be above 0. Received: {argument}={value}"
            )
    if teacher >= student and not allow_flat_target:
        raise ValueError(
            "`teacher_temperature` must be smaller than `student_temperature`:"
            " with a target as flat as the prediction the embeddings collapse."
            " Use the paper's 0.03 or 0.04 with 0.1, or allow_flat_target=True"
            " to see the collapse. "
            f"Received: teacher_temperature={teacher}, "
            f"student_temperature={student}"
        )


def _check_networks(backbone, projector, predictor):
    """Raises unless they are built and fit; returns the embedding size."""
    networks = {"backbone": backbone, "projector": projector}
    if predictor is not None:
        networks["predictor"] = predictor
    for argument, network in networks.items():
        # Both are known of functional and built sequential models alone.
        shapes = ("input_shape", "output_shape")
        if not isinstance(network, keras.Model) or not all(
            hasattr(network, shape) for shape in shapes
        ):
            raise ValueError(
                f"`{argument}` must be a built keras.Model. Build a sequential "
                "model, and wrap a subclassed one: inputs = keras.Input(shape);"
                " keras.Model(inputs, network(inputs)). "
                f"Received: {argument}={network!r}"
            )
        if len(network.output_shape) != 2:
            raise ValueError(
                f"`{argument}` must return one vector an image, (B, C): add "
                "global average pooling. "
                f"Received: output shape {network.output_shape}"
            )
    produced = backbone
    for argument, network in list(networks.items())[1:]:
        if network.input_shape[-1] != produced.output_shape[-1]:
            raise ValueError(
                f"`{argument}` must take the {produced.output_shape[-1]} "
                f"values that `{produced.name}` returns. "
                f"Received: input shape {network.input_shape}"
            )
        produced = network
    if produced.output_shape[-1] != projector.output_shape[-1]:
        raise ValueError(
            "`predictor` must return as many values as `projector`: "
            f"{projector.output_shape[-1]}. "
            f"Received: output shape {produced.output_shape}"
        )
    return projector.output_shape[-1]
