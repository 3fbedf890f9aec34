"""Tests of the training pipeline."""

import numpy as np
import pytest
import tensorflow as tf

from ressl_tf import data

PINNED = [[3, 7, 4, 6, 2, 5, 1, 0], [5, 0, 7, 1, 2, 4, 6, 3]]


class IndexView:
    """Shows which image it was given: images hold their number as pixels."""

    def apply(self, images, seed):
        del seed
        return tf.cast(images, tf.float32)


class DrawView:
    """Shows its seed: numbers drawn from it."""

    def apply(self, images, seed):
        shape = [images.shape[0], 2, 2, 3]
        draws = tf.random.stateless_uniform(
            shape, seed, minval=0, maxval=2**20, dtype=tf.int32
        )
        return tf.cast(draws, tf.float32)


def numbered_images(num_images):
    images = np.zeros((num_images, 1, 1, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(num_images)
    return images


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


def assert_same(left, right):
    assert len(left) == len(right) > 0
    for one, other in zip(left, right, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


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


def test_images_are_captured_and_not_written_into_the_graph():
    sources = []

    class SpyView(IndexView):
        def apply(self, images, seed):
            sources.append([tensor.op.type for tensor in images.op.inputs])
            return super().apply(images, seed)

    # Enough images: TensorFlow does write tiny tensors into graphs.
    make(num_images=200, student=(SpyView(),))
    assert sources
    for types in sources:
        assert types[0] == "Placeholder"


def test_the_callers_array_may_change_afterwards():
    images = numbered_images(8)
    views = {"student_views": (IndexView(),), "teacher_views": (IndexView(),)}
    dataset = data.make_train_dataset(images, batch_size=8, seed=0, **views)
    images[:] = 0
    assert set(indices_of(dataset, 1)[0]) == set(range(8))


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
