"""The training pipeline: batches of views as a pure function of the step."""

import tensorflow as tf

from ressl_tf.data import decoding
from ressl_tf.data import service as service_lib
from ressl_tf.data.decoding import BadImages
from ressl_tf.data.image_files import default_max_bad
from ressl_tf.data.order import VIEW_STREAM
from ressl_tf.data.order import check_integer
from ressl_tf.data.order import fold_in
from ressl_tf.data.order import steps_per_epoch
from ressl_tf.data.order import stream_key
from ressl_tf.data.readers import MemoryReader

# Of one view of a piece: half of a core's second-level cache and more is slower
# at 224 pixels, less costs more calls.
_PIECE_BYTES = 5 * 2**20


def distribute_train_dataset(strategy, images, **arguments):
    """Batches of views for the replicas of a strategy, without end.

    Whatever the strategy, the batches of the replicas, one behind the other,
    are the batch that one replica would get.

    Args:
        strategy: a `tf.distribute.Strategy`.
        images: as in `make_train_dataset`.
        **arguments: as in `make_train_dataset`; `worker`, `num_workers` and
            `replicas_per_worker` are the strategy's.

    Returns:
        A `tf.data.Dataset` of whole batches if the strategy has one replica,
        else a distributed data set, each element of which holds one part of
        the batch for every replica of this worker.

    Raises:
        ValueError: as `make_train_dataset`.
    """
    if strategy.num_replicas_in_sync == 1:
        return make_train_dataset(images, **arguments)
    reader = _to_reader(images)

    def make_worker_dataset(context):
        num_workers = context.num_input_pipelines
        return make_train_dataset(
            reader,
            worker=context.input_pipeline_id,
            num_workers=num_workers,
            replicas_per_worker=context.num_replicas_in_sync // num_workers,
            **arguments,
        )

    return strategy.distribute_datasets_from_function(make_worker_dataset)


def make_train_dataset(
    images,
    *,
    batch_size,
    student_views,
    teacher_views,
    seed,
    start_step=0,
    augment_on="host",
    bad_images=None,
    worker=0,
    num_workers=1,
    replicas_per_worker=1,
    service=None,
    num_parallel_calls=tf.data.AUTOTUNE,
):
    """Batches of views for training, without end.

    The batch of step t depends on `seed` and t alone: each epoch has its own
    order (see `readers`), and view number v (student views first) gets a seed
    made of (seed, v, t). A run resumed with `start_step`, or on another number
    of workers, therefore sees what the uninterrupted one would have seen, and
    no image is decoded or augmented to get there.

    A batch is made in pieces of a few images, whose views fit into the cache
    of a core.

    Args:
        images: a reader (see `readers`), or uint8 [N, H, W, 3], of which one
            copy is kept in host memory.
        batch_size: B, images per step over all replicas.
        student_views: objects whose `apply(images, seed)` maps a uint8
            [B, H, W, 3] tensor and an int64 [2] seed to float32 [B, S, S, 3],
            drawing nothing but from the seed. With `rows=(first, B)` the
            images are the rows from `first` on of a batch of B, and get what
            they would get in it. `augment.View` is meant; only such views can
            be cut from images of several sizes or be finished on a device.
        teacher_views: the same.
        seed: integer; another seed gives other orders and other views.
        start_step: step of the first batch.
        augment_on: "host": the views are made here. "device": they are only
            cut here; each is a dict, of which the view's `finish` makes the
            images on the device (`ReSSL(views=...)`), the same but for the
            crops' rounding to 256 levels.
        bad_images: `decoding.BadImages`, which counts images that cannot be
            read; the place of each is taken by the next readable one of this
            worker's rows. None for the default number of them.
        worker: number of this worker, w, from 0.
        num_workers: W; worker w reads, decodes and augments the rows w B / W
            to (w + 1) B / W of each batch, and no other.
        replicas_per_worker: R; these rows come as R elements a step.
        service: "grpc://HOST:PORT" of a tf.data service that makes the
            batches, the same ones in the same order; None for this process.
        num_parallel_calls: pieces made at once; changes no batch.

    Returns:
        An infinite `tf.data.Dataset` of
        {"student": (views...), "teacher": (views...)}, each float32
        [B / W / R, S, S, 3], a static shape.

    Raises:
        ValueError: `images` is no uint8 [N, H, W, 3] array, no views or views
            of no static shape, `batch_size`, `start_step`, `seed` or `worker`
            is out of range, `batch_size` is not divisible by the number of
            replicas, `augment_on` is something else, or `service` is not
            there or would be sent too much.
    """
    reader = _to_reader(images)
    steps_per_epoch(reader.num_images, batch_size)
    check_integer("start_step", start_step, 0)
    check_integer("seed", seed, -(2**63))
    _check_replicas(batch_size, worker, num_workers, replicas_per_worker)
    views = Views(
        _check_views("student_views", student_views),
        _check_views("teacher_views", teacher_views),
        seed=seed,
        augment_on=augment_on,
    )
    if service is not None:
        service = service_lib.connect(service)
        _check_graph_size(reader, service, num_workers)
    if bad_images is None:
        bad_images = BadImages(default_max_bad(reader.num_images))

    own = batch_size // num_workers
    piece_size = _piece_size(own, views.largest)
    num_pieces = own // piece_size

    def to_pieces(step, what):
        first = worker * own + piece_size * tf.range(num_pieces)
        what = tf.reshape(what, [num_pieces, piece_size])
        return tf.data.Dataset.from_tensor_slices(
            (tf.fill([num_pieces], step), first, what)
        )

    def make_piece(step, first, what):
        if num_pieces == 1:
            first = worker * own
        rows = None if own == batch_size == piece_size else (first, batch_size)
        return step, views.make(reader, what, step, rows)

    def to_batch(steps, pieces):
        def join(parts):
            return tf.reshape(parts, [own, *parts.shape[2:]])

        return steps[0], tf.nest.map_structure(join, pieces)

    def make_batches(steps):
        pieces = steps.flat_map(to_pieces).map(
            make_piece,
            num_parallel_calls=num_parallel_calls,
            deterministic=True,
        )
        if num_pieces == 1:
            return pieces
        batches = pieces.batch(num_pieces, drop_remainder=True)
        return batches.map(to_batch)

    steps = reader.steps(
        batch_size,
        seed=seed,
        start_step=start_step,
        worker=worker,
        num_workers=num_workers,
    )
    if service is None:
        dataset = make_batches(steps).map(lambda step, batch: batch)
    else:
        dataset = service_lib.fetch(steps, make_batches, service, start_step)
    if reader.encoded:
        # Here, whoever made the batch: this process counts them.
        dataset = dataset.map(lambda batch: replace_bad(batch, bad_images))
    _check_shapes(dataset.element_spec, own)
    if replicas_per_worker > 1:
        dataset = dataset.map(lambda batch: _split(batch, replicas_per_worker))
        dataset = dataset.unbatch()
    # Keras then asks for steps_per_epoch instead of counting for ever.
    dataset = dataset.apply(
        tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    )
    options = tf.data.Options()
    options.deterministic = True
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(options)


class Views:
    """How a piece of a batch becomes its views.

    Args:
        student: views, as `make_train_dataset` takes them.
        teacher: views.
        seed: integer.
        augment_on: "host" or "device".

    Raises:
        ValueError: `augment_on` is something else, or "device" with views
            that cannot be finished there.
    """

    def __init__(self, student, teacher, *, seed, augment_on):
        if augment_on not in ("host", "device"):
            raise ValueError(
                "`augment_on` must be 'host' or 'device'. "
                f"Received: augment_on={augment_on!r}"
            )
        self._views = student + teacher
        self._num_student = len(student)
        self._key = stream_key(seed, VIEW_STREAM)
        self._on_device = augment_on == "device"
        if self._on_device:
            _require(self._views, "finish", 'with augment_on="device"')

    @property
    def largest(self):
        """Height and width of the largest view; None if views do not tell."""
        sizes = [getattr(view, "size", None) for view in self._views]
        return None if None in sizes else max(sizes)

    def make(self, reader, what, step, rows):
        """The views of a piece.

        Args:
            reader: see `readers`.
            what: what it reads for the piece.
            step: int64 scalar.
            rows: None, or (first, B): which rows of the batch the piece is.

        Returns:
            {"student": (views...), "teacher": (views...)}; of encoded images
            also "names", string [b], and "readable", bool [b].
        """
        keys = [
            fold_in(fold_in(self._key, tf.constant(n, tf.int64)), step)
            for n in range(len(self._views))
        ]
        if not reader.encoded:
            return self._by_role(self._cut(reader.load(what), keys, rows))
        encoded, names = reader.load(what)
        if reader.image_shape is None:
            views, readable = self._cut_each(encoded, keys, rows)
        else:
            images, readable = _decode_all(encoded, reader.image_shape)
            views = self._cut(images, keys, rows)
        return {**self._by_role(views), "names": names, "readable": readable}

    def _by_role(self, views):
        return {
            "student": tuple(views[: self._num_student]),
            "teacher": tuple(views[self._num_student :]),
        }

    def _cut(self, images, keys, rows):
        """Views of images of one size, uint8 [b, H, W, 3]."""
        part = {} if rows is None else {"rows": rows}
        pairs = zip(self._views, keys, strict=True)
        if self._on_device:
            return [
                view.pack(*view.crop(images, key, **part))
                for view, key in pairs
            ]
        return [view.apply(images, key, **part) for view, key in pairs]

    def _cut_each(self, encoded, keys, rows):
        """Views of images of any size: (views, which images are readable)."""
        _require(self._views, "crop_one", "for images of several sizes")
        num_images = encoded.shape[0]
        drawn = [
            tf.function(view.draw, jit_compile=True, autograph=False)(
                num_images, key, rows
            )
            for view, key in zip(self._views, keys, strict=True)
        ]

        def cut(row):
            encoded, drawn = row
            image, readable = decoding.decode(encoded)
            alone = tf.nest.map_structure(lambda value: value[None], drawn)
            crops = [
                view.crop_one(image, own)
                for view, own in zip(self._views, alone, strict=True)
            ]
            return crops, readable

        crop_specs = [
            tf.TensorSpec([view.size, view.size, 3], tf.float32)
            for view in self._views
        ]
        crops, readable = tf.map_fn(
            cut,
            (encoded, drawn),
            fn_output_signature=(crop_specs, tf.TensorSpec([], tf.bool)),
        )
        triples = zip(self._views, crops, drawn, strict=True)
        if self._on_device:
            return [view.pack(*rest) for view, *rest in triples], readable
        return [
            view.distort_one_by_one(*rest) for view, *rest in triples
        ], readable


def _piece_size(num_rows, view_size):
    """The largest divisor of `num_rows` whose views stay in a core's cache."""
    if view_size is None:
        return num_rows
    fitting = max(1, _PIECE_BYTES // (view_size**2 * 3 * 4))
    return max(
        number
        for number in range(1, min(fitting, num_rows) + 1)
        if num_rows % number == 0
    )


def _decode_all(encoded, shape):
    """String [b] -> (uint8 [b, *shape], bool [b]); another size is bad."""

    def decode(encoded):
        image, readable = decoding.decode(encoded)
        readable &= tf.reduce_all(tf.shape(image) == shape)
        blank = tf.zeros(shape, tf.uint8)
        image = tf.cond(readable, lambda: image, lambda: blank)
        return tf.ensure_shape(image, shape), readable

    return tf.map_fn(
        decode,
        encoded,
        fn_output_signature=(
            tf.TensorSpec(shape, tf.uint8),
            tf.TensorSpec([], tf.bool),
        ),
    )


def replace_bad(batch, bad_images):
    """Counts the bad images and puts the next readable one there.

    Of the whole batch, not of a piece: which one that is does not depend on
    how the batch was made.

    Args:
        batch: dict of nested [b, ...] tensors, with "names" and "readable" of
            `Views.make`.
        bad_images: `BadImages`.

    Returns:
        The dict without these two.
    """
    batch = dict(batch)
    names, readable = batch.pop("names"), batch.pop("readable")
    bad_images.check(names, readable)

    def replace():
        tf.debugging.Assert(
            tf.reduce_any(readable),
            ["No image of a batch can be read, for instance", names],
        )
        number = tf.size(readable)
        rows = tf.range(number)
        distance = (rows[None, :] - rows[:, None]) % number
        distance += tf.where(readable, 0, number)[None, :]
        taken = tf.argmin(distance, axis=1)
        return tf.nest.map_structure(lambda x: tf.gather(x, taken), batch)

    return tf.cond(tf.reduce_all(readable), lambda: batch, replace)


def _to_reader(images):
    return images if hasattr(images, "steps") else MemoryReader(images)


def _split(batch, number):
    """Tensors [b, ...] -> [number, b / number, ...]."""

    def split(tensor):
        size, *shape = tensor.shape
        return tf.reshape(tensor, [number, size // number, *shape])

    return tf.nest.map_structure(split, batch)


def _check_replicas(batch_size, worker, num_workers, replicas_per_worker):
    check_integer("num_workers", num_workers, 1)
    check_integer("replicas_per_worker", replicas_per_worker, 1)
    check_integer("worker", worker, 0)
    if worker >= num_workers:
        raise ValueError(
            f"`worker` must be below the number of workers, {num_workers}. "
            f"Received: worker={worker}"
        )
    replicas = num_workers * replicas_per_worker
    if batch_size % replicas:
        below = batch_size // replicas * replicas
        fitting = [str(n) for n in (below, below + replicas) if n]
        raise ValueError(
            "`batch_size` must be a multiple of the number of replicas, "
            f"{replicas}, for instance {' or '.join(fitting)}. "
            f"Received: batch_size={batch_size}"
        )


def _check_graph_size(reader, service, num_workers):
    # A copy for each job: one a trainer and worker of the service.
    num_bytes = reader.num_bytes * service.num_workers * num_workers
    if num_bytes > service_lib.MAX_GRAPH_BYTES:
        raise ValueError(
            "`service` must not be sent more than "
            f"{service_lib.MAX_GRAPH_BYTES / 2**20:.0f} MiB of images per "
            f"worker. Received: {num_bytes / 2**20:.0f} MiB, the images times "
            f"{service.num_workers} workers of the service times "
            f"{num_workers} of the training. Stream them from files "
            "(data.stream=True; `python -m tools.make_shards` writes such "
            "files)"
        )


def _check_shapes(spec, num_rows):
    for name, views in spec.items():
        for number, view in enumerate(views):
            for part in tf.nest.flatten(view):
                shape = part.shape
                if shape.is_fully_defined() and shape[0] == num_rows:
                    continue
                raise ValueError(
                    f"`{name}_views` must have apply(images, seed) return a "
                    f"static shape [{num_rows}, S, S, 3] (see "
                    f"tf.ensure_shape). Received: {shape} of view {number}"
                )


def _require(views, method, when):
    for view in views:
        if not callable(getattr(view, method, None)):
            raise ValueError(
                f"`student_views` and `teacher_views` must be `augment.View`s "
                f"{when}. Received: {view!r}, which has no `{method}`"
            )


def _check_views(name, views):
    if not isinstance(views, list | tuple) or not views:
        raise ValueError(
            f"`{name}` must be a list or tuple of at least one view. "
            f"Received: {name}={views!r}"
        )
    for view in views:
        if not callable(getattr(view, "apply", None)):
            raise ValueError(
                f"`{name}` must hold objects with apply(images, seed). "
                f"Received: {name}={views!r}"
            )
    return tuple(views)
