"""The training pipeline: batches of views as a pure function of the step."""

import tensorflow as tf

from ressl_tf.data import service as service_lib
from ressl_tf.data.readers import MemoryReader
from ressl_tf.data.readers import check_integer
from ressl_tf.data.readers import fold_in
from ressl_tf.data.readers import steps_per_epoch
from ressl_tf.data.readers import stream_key

_VIEW_STREAM = 1


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

    Args:
        images: a reader (see `readers`), or uint8 [N, H, W, 3], of which one
            copy is kept in host memory.
        batch_size: B, images per step over all replicas.
        student_views: objects whose `apply(images, seed)` maps a uint8
            [B, H, W, 3] tensor and an int64 [2] seed to float32 [B, S, S, 3],
            drawing nothing but from the seed. For several workers it is
            called with `rows=(first, B)` too: the images are then the rows
            from `first` on of a batch of B, and get what they would get in it
            (`augment.View.apply`).
        teacher_views: the same.
        seed: integer; another seed gives other orders and other views.
        start_step: step of the first batch.
        worker: number of this worker, w, from 0.
        num_workers: W; worker w reads, decodes and augments the rows w B / W
            to (w + 1) B / W of each batch, and no other.
        replicas_per_worker: R; these rows come as R elements a step.
        service: "grpc://HOST:PORT" of a tf.data service that makes the
            batches, the same ones in the same order; None for this process.
        num_parallel_calls: batches made at once; changes no batch.

    Returns:
        An infinite `tf.data.Dataset` of
        {"student": (views...), "teacher": (views...)}, each float32
        [B / W / R, S, S, 3], a static shape.

    Raises:
        ValueError: `images` is no uint8 [N, H, W, 3] array, no views or views
            of no static shape, `batch_size`, `start_step`, `seed` or `worker`
            is out of range, `batch_size` is not divisible by the number of
            replicas, or `service` is not there or would be sent too much.
    """
    reader = _to_reader(images)
    steps_per_epoch(reader.num_images, batch_size)
    check_integer("start_step", start_step, 0)
    check_integer("seed", seed, -(2**63))
    _check_replicas(batch_size, worker, num_workers, replicas_per_worker)
    student_views = _check_views("student_views", student_views)
    teacher_views = _check_views("teacher_views", teacher_views)
    if service is not None:
        service = service_lib.connect(service)
        _check_graph_size(reader, service, num_workers)

    view_key = stream_key(seed, _VIEW_STREAM)
    own = batch_size // num_workers
    part = {} if num_workers == 1 else {"rows": (worker * own, batch_size)}

    def make_batch(step, what):
        batch = reader.load(what)
        results = []
        for number, view in enumerate(student_views + teacher_views):
            key = fold_in(view_key, tf.constant(number, tf.int64))
            results.append(view.apply(batch, fold_in(key, step), **part))
        return step, {
            "student": tuple(results[: len(student_views)]),
            "teacher": tuple(results[len(student_views) :]),
        }

    def make_batches(steps):
        return steps.map(
            make_batch,
            num_parallel_calls=num_parallel_calls,
            deterministic=True,
        )

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
            shape = view.shape
            if not shape.is_fully_defined() or shape[0] != num_rows:
                raise ValueError(
                    f"`{name}_views` must have apply(images, seed) return a "
                    f"static shape [{num_rows}, S, S, 3] (see "
                    f"tf.ensure_shape). Received: {shape} of view {number}"
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
