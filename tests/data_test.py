"""Tests of the training pipeline."""

import numpy as np
import pytest
import tensorflow as tf
from numbered import assert_same
from numbered import numbered_images
from numbered import numbered_shard

from ressl_tf import augment
from ressl_tf import data

PINNED = [[3, 7, 4, 6, 2, 5, 1, 0], [5, 0, 7, 1, 2, 4, 6, 3]]


class IndexView:
    """Shows which image it was given: images hold their number as pixels."""

    def apply(self, images, seed, rows=None):
        del seed, rows
        return tf.cast(images, tf.float32)


class DrawView:
    """Shows its seed: numbers drawn from it."""

    def apply(self, images, seed, rows=None):
        first, batch_size = rows or (0, images.shape[0])
        draws = tf.random.stateless_uniform(
            [batch_size, 2, 2, 3], seed, minval=0, maxval=2**20, dtype=tf.int32
        )
        draws = draws[first : first + images.shape[0]]
        return tf.cast(draws, tf.float32)


def make(num_images=23, batch_size=4, student=None, teacher=None, **options):
    return data.make_train_dataset(
        numbered_images(num_images),
        batch_size=batch_size,
        student_views=student or (IndexView(),),
        teacher_views=teacher or (DrawView(),),
        **{"seed": 0, **options},
    )


def indices_of(dataset, num_steps):
    batches = dataset.take(num_steps).as_numpy_iterator()
    return np.array([b["student"][0][:, 0, 0, 0] for b in batches], int)


def flat(dataset, num_steps):
    return [
        tf.nest.flatten(batch)
        for batch in dataset.take(num_steps).as_numpy_iterator()
    ]


@pytest.mark.core
@pytest.mark.parametrize("num_images, batch_size", [(20, 4), (23, 4), (7, 7)])
def test_an_epoch_visits_each_image_at_most_once(num_images, batch_size):
    steps = num_images // batch_size
    indices = indices_of(make(num_images, batch_size), 4 * steps)
    epochs = indices.reshape(4, steps * batch_size)
    for epoch in epochs:
        assert len(set(epoch)) == steps * batch_size
        assert 0 <= min(epoch) and max(epoch) < num_images
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_images_dropped_by_one_epoch_are_seen_in_others():
    indices = indices_of(make(23, 4), 5 * 12)
    assert set(indices.ravel()) == set(range(23))


@pytest.mark.core
def test_order_is_pinned():
    # A changed order would resume old runs with other images.
    indices = indices_of(make(8, 8, seed=3), 2)
    np.testing.assert_array_equal(indices, PINNED)


def test_orders_look_uniform():
    # Every image is in every position equally often: 600 epochs of 6 images,
    # 100 expected per cell, standard deviation 9.
    indices = indices_of(make(6, 6), 600)
    counts = [np.bincount(column, minlength=6) for column in indices.T]
    assert np.min(counts) > 60 and np.max(counts) < 140


@pytest.mark.core
def test_seeds_give_other_orders_and_other_views():
    first, second = flat(make(seed=0), 5), flat(make(seed=1), 5)
    for one, other in zip(first, second, strict=True):
        for a, b in zip(one, other, strict=True):
            assert not np.array_equal(a, b)


@pytest.mark.core
@pytest.mark.parametrize("start_step", [1, 4, 5, 7, 10, 14])
def test_resuming_continues_the_run(start_step):
    whole = flat(make(), 16)
    assert_same(flat(make(start_step=start_step), 2), whole[start_step:][:2])
    if start_step == 4:
        assert_same(flat(make(start_step=4), 12), whole[4:])


def test_a_numpy_start_step_and_a_late_one_work():
    assert_same(flat(make(start_step=np.int64(3)), 1), flat(make(), 4)[3:])
    assert len(set(indices_of(make(start_step=2**40), 1)[0])) == 4


def test_resuming_runs_no_view_for_the_skipped_steps():
    calls = []

    class CountingView(IndexView):
        def apply(self, images, seed):
            tf.py_function(lambda: calls.append(1), [], [])
            return super().apply(images, seed)

    dataset = make(400, 2, student=(CountingView(),), start_step=190)
    iterator = iter(dataset)
    next(iterator)
    del iterator
    # The prefetched batches count, 190 skipped ones do not.
    assert 1 <= len(calls) < 100


@pytest.mark.core
def test_parallel_calls_change_nothing():
    runs = [flat(make(num_parallel_calls=n), 12) for n in (1, 4)]
    assert_same(*runs)
    assert_same(runs[0], flat(make(), 12))


def test_no_two_views_or_steps_share_draws():
    views = (DrawView(), DrawView())
    seen = set()
    for seed in (0, 1):
        for batch in flat(make(student=views, teacher=views, seed=seed), 10):
            seen.update(view.tobytes() for view in batch)
    assert len(seen) == 2 * 10 * 4


def test_students_are_numbered_before_teachers():
    draw = DrawView()
    two_and_one = make(student=(draw, draw), teacher=(draw,))
    one_and_two = make(student=(draw,), teacher=(draw, draw))
    assert_same(flat(two_and_one, 3), flat(one_and_two, 3))


def test_elements_have_static_shapes_and_no_end():
    dataset = make(student=(IndexView(), DrawView()))
    spec = dataset.element_spec
    assert [s.shape.as_list() for s in spec["student"]] == [
        [4, 1, 1, 3],
        [4, 2, 2, 3],
    ]
    assert [s.shape.as_list() for s in spec["teacher"]] == [[4, 2, 2, 3]]
    assert {s.dtype for s in tf.nest.flatten(spec)} == {tf.float32}
    assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    assert dataset.options().deterministic


def test_the_callers_array_may_change_afterwards():
    images = numbered_images(8)
    views = {"student_views": (IndexView(),), "teacher_views": (IndexView(),)}
    dataset = data.make_train_dataset(images, batch_size=8, seed=0, **views)
    images[:] = 0
    assert set(indices_of(dataset, 1)[0]) == set(range(8))


def join(parts):
    """The batches whose parts came one behind the other."""
    return [
        [np.concatenate(views) for views in zip(*batch, strict=True)]
        for batch in parts
    ]


STEPS = 7  # An epoch has 5 of them: 23 images in batches of 4.


@pytest.fixture(params=["memory", "shards"])
def images(request, tmp_path):
    """23 numbered images, in memory or streamed in two lanes."""
    if request.param == "memory":
        return numbered_images(23)
    return numbered_shard(tmp_path, 23, lanes=4, window=3)


def make_of(images, **options):
    options = {"seed": 0, "batch_size": 4, **options}
    views = {
        "student_views": (IndexView(), DrawView()),
        "teacher_views": (DrawView(),),
    }
    return data.make_train_dataset(images, **views, **options)


@pytest.mark.core
@pytest.mark.parametrize("num_workers", [2, 4])
def test_workers_have_the_parts_of_one_batch(images, num_workers):
    workers = [
        flat(make_of(images, worker=worker, num_workers=num_workers), STEPS)
        for worker in range(num_workers)
    ]
    assert_same(join(zip(*workers, strict=True)), flat(make_of(images), STEPS))


@pytest.mark.core
def test_replicas_of_a_worker_have_consecutive_parts(images):
    dataset = make_of(images, replicas_per_worker=2)
    assert {
        spec.shape[0] for spec in tf.nest.flatten(dataset.element_spec)
    } == {2}
    assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    parts = flat(dataset, 2 * STEPS)
    pairs = zip(parts[::2], parts[1::2], strict=True)
    assert_same(join(pairs), flat(make_of(images), STEPS))

    options = {"num_workers": 2, "worker": 1, "replicas_per_worker": 2}
    parts = flat(make_of(images, **options, start_step=3), 4)
    expected = flat(make_of(images, start_step=3), 2)
    for index, part in enumerate(parts):
        row = 2 + index % 2
        whole = expected[index // 2]
        assert_same([part], [[view[row : row + 1] for view in whole]])


@pytest.mark.core
def test_replicas_of_a_strategy_have_one_batch(images, two_replicas):
    dataset = data.distribute_train_dataset(
        two_replicas,
        images,
        batch_size=4,
        student_views=(IndexView(), DrawView()),
        teacher_views=(DrawView(),),
        seed=0,
        start_step=2,
    )
    iterator = iter(dataset)
    parts = []
    for _ in range(STEPS):
        values = tf.nest.map_structure(
            two_replicas.experimental_local_results, next(iterator)
        )
        views = [*values["student"], *values["teacher"]]
        parts.append(
            [[view[replica].numpy() for view in views] for replica in (0, 1)]
        )
        assert parts[-1][0][0].shape == (2, 1, 1, 3)
    assert_same(join(parts), flat(make_of(images), 2 + STEPS)[2:])


def test_one_replica_gets_a_plain_dataset():
    dataset = data.distribute_train_dataset(
        tf.distribute.get_strategy(),
        numbered_images(23),
        batch_size=4,
        student_views=(IndexView(),),
        teacher_views=(DrawView(),),
        seed=0,
    )
    assert isinstance(dataset, tf.data.Dataset)
    assert_same(flat(dataset, STEPS), flat(make(), STEPS))


@pytest.mark.core
def test_real_views_of_workers_and_replicas_have_the_bits_of_one():
    images = np.random.default_rng(0).integers(
        0, 256, (30, 20, 20, 3), dtype=np.uint8
    )
    options = {
        "batch_size": 8,
        "student_views": (augment.strong_view(12, blur_kernel=3),),
        "teacher_views": (augment.weak_view(16),),
        "seed": 0,
    }
    whole = flat(data.make_train_dataset(images, **options), 4)
    workers = [
        flat(
            data.make_train_dataset(
                images, **options, worker=worker, num_workers=2
            ),
            4,
        )
        for worker in (0, 1)
    ]
    assert_same(join(zip(*workers, strict=True)), whole)
    spec = data.make_train_dataset(images, **options).element_spec
    assert spec["student"][0].shape.as_list() == [8, 12, 12, 3]
    assert spec["teacher"][0].shape.as_list() == [8, 16, 16, 3]


def test_views_are_not_asked_for_rows_by_a_single_worker():
    class OwnView:
        def apply(self, images, seed):
            return tf.cast(images, tf.float32)

    assert flat(make(student=(OwnView(),), replicas_per_worker=2), 2)


@pytest.mark.parametrize("rows, size", [(None, 1), (4, None), (3, 1)])
def test_views_without_a_static_shape_are_refused(rows, size):
    class ShapelessView(IndexView):
        def apply(self, images, seed):
            images = super().apply(images, seed)
            shape = tf.where(seed[0] == 0, 1, 1)  # Not known beforehand.
            images = tf.reshape(images, [-1, shape, shape, 3])
            return tf.ensure_shape(images[:3], [rows and 3, size, size, 3])

    match = r"`teacher_views` must.*static shape \[4, S, S, 3\].*of view 1"
    with pytest.raises(ValueError, match=match):
        make(teacher=(IndexView(), ShapelessView()))


@pytest.mark.parametrize(
    "options, match",
    [
        ({"num_workers": 3}, "replicas, 3, for instance 3 or 6. .*size=4"),
        (
            {"num_workers": 3, "replicas_per_worker": 2},
            "replicas, 6, for instance 6. .*batch_size=4",
        ),
        ({"num_workers": 2, "worker": 2}, "`worker` must be below.*worker=2"),
        ({"worker": -1}, "`worker`.*worker=-1"),
        ({"num_workers": 0}, "`num_workers`.*num_workers=0"),
    ],
)
def test_replicas_that_do_not_fit(options, match):
    with pytest.raises(ValueError, match=match):
        make(**options)


def test_steps_per_epoch():
    assert data.steps_per_epoch(50000, 256) == 195
    assert data.steps_per_epoch(4, 4) == 1


@pytest.mark.parametrize("batch_size", [0, -1, 24])
def test_batch_size_out_of_range(batch_size):
    match = rf"number of images \(23\).*batch_size={batch_size}"
    with pytest.raises(ValueError, match=match):
        make(batch_size=batch_size)
    with pytest.raises(ValueError, match=match):
        data.steps_per_epoch(23, batch_size)


@pytest.mark.parametrize(
    "options, match",
    [
        ({"start_step": -1}, "`start_step`.*start_step=-1"),
        ({"start_step": 1.5}, "`start_step`.*start_step=1.5"),
        ({"seed": None}, "`seed`.*seed=None"),
        ({"student": IndexView()}, "`student_views` must be a list"),
        ({"teacher": [tf.cast]}, "`teacher_views` must hold objects"),
    ],
)
def test_bad_arguments(options, match):
    with pytest.raises(ValueError, match=match):
        make(**options)


@pytest.mark.parametrize("name", ["student_views", "teacher_views"])
def test_no_views(name):
    views = {"student_views": [IndexView()], "teacher_views": [IndexView()]}
    with pytest.raises(ValueError, match=rf"`{name}`.*{name}=\[\]"):
        data.make_train_dataset(
            numbered_images(4), batch_size=2, seed=0, **{**views, name: []}
        )


@pytest.mark.parametrize(
    "images, found",
    [
        (np.zeros((4, 2, 2, 3), np.float32), r"float32 \(4, 2, 2, 3\)"),
        (np.zeros((4, 2, 2), np.uint8), r"uint8 \(4, 2, 2\)"),
        (np.zeros((4, 2, 2, 1), np.uint8), r"uint8 \(4, 2, 2, 1\)"),
    ],
)
def test_bad_images(images, found):
    with pytest.raises(ValueError, match=f"`images` must be uint8.*{found}"):
        data.make_train_dataset(
            images,
            batch_size=2,
            student_views=[IndexView()],
            teacher_views=[IndexView()],
            seed=0,
        )
