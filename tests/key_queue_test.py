import numpy as np
import pytest
import reference
import tensorflow as tf

import ressl_tf


def unit_rows(rows, seed):
    values = np.random.default_rng(seed).normal(size=(rows, 3))
    return values.astype(np.float32)


@pytest.mark.core
@pytest.mark.parametrize(
    "size, batches",
    [
        (8, (4, 4, 4)),  # K a multiple of B
        (7, (3, 3, 3, 3)),  # wraps within a batch
        (5, (5, 5)),  # B = K
        (4, (5, 3, 9)),  # B > K: the last K remain
        (6, (1, 0, 5, 2)),
    ],
)
def test_is_a_ring_buffer(size, batches):
    queue = ressl_tf.KeyQueue(size, 3, seed=1)
    slow = reference.RingBuffer(np.asarray(queue.keys))
    enqueue = tf.function(queue.enqueue)
    for number, batch in enumerate(batches):
        keys = unit_rows(batch, number)
        enqueue(keys)
        slow.enqueue(keys)
        np.testing.assert_allclose(queue.keys, slow.keys, atol=1e-6)
        assert int(tf.convert_to_tensor(queue.pointer)) == slow.pointer


def test_starts_with_random_unit_vectors():
    queue = ressl_tf.KeyQueue(64, 16, seed=3)
    keys = np.asarray(queue.keys)
    np.testing.assert_allclose(np.linalg.norm(keys, axis=1), 1.0, rtol=1e-6)
    # Random directions in 16 dimensions: similarities around 0, spread 1/4.
    similarities = (keys @ keys.T)[~np.eye(64, dtype=bool)]
    assert abs(similarities.mean()) < 0.03
    assert similarities.std() == pytest.approx(0.25, abs=0.03)
    np.testing.assert_array_equal(keys, ressl_tf.KeyQueue(64, 16, seed=3).keys)
    assert not np.array_equal(keys, ressl_tf.KeyQueue(64, 16, seed=4).keys)


def test_stores_unit_vectors_in_float32():
    queue = ressl_tf.KeyQueue(4, 3)
    queue.enqueue(tf.cast([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]], tf.float16))
    np.testing.assert_allclose(
        np.asarray(queue.keys)[:2], [[0.6, 0.8, 0.0], [0.0, 0.0, 1.0]]
    )


@pytest.mark.core
def test_gathers_over_replicas_in_order(two_replicas):
    with two_replicas.scope():
        queue = ressl_tf.KeyQueue(7, 3, seed=1)
    slow = reference.RingBuffer(np.asarray(tf.convert_to_tensor(queue.keys)))
    parts = unit_rows(12, 0).reshape(2, 6, 3)  # replica, key, dim

    @tf.function
    def step(start):
        def replica_step():
            context = tf.distribute.get_replica_context()
            part = tf.constant(parts)[context.replica_id_in_sync_group]
            queue.enqueue(part[start : start + 2])

        two_replicas.run(replica_step)

    for start in (0, 2, 4):
        step(tf.constant(start))
        slow.enqueue(np.concatenate(parts[:, start : start + 2]))
        variable = (
            queue.keys.value if hasattr(queue.keys, "path") else (queue.keys)
        )
        for copy in two_replicas.experimental_local_results(variable):
            np.testing.assert_allclose(copy.numpy(), slow.keys, atol=1e-6)
        assert int(tf.convert_to_tensor(queue.pointer)) == slow.pointer


def test_is_in_checkpoints_and_weight_files(tmp_path):
    queue = ressl_tf.KeyQueue(5, 3, seed=1)
    queue.enqueue(unit_rows(2, 0))
    path = tf.train.Checkpoint(queue=queue).save(str(tmp_path / "step"))
    other = ressl_tf.KeyQueue(5, 3, seed=2)
    tf.train.Checkpoint(queue=other).restore(path).assert_consumed()
    np.testing.assert_array_equal(other.keys, queue.keys)
    assert int(tf.convert_to_tensor(other.pointer)) == 2

    third = ressl_tf.KeyQueue(5, 3, seed=2)
    third.set_weights(queue.get_weights())
    np.testing.assert_array_equal(third.keys, queue.keys)


def test_config_round_trip():
    queue = ressl_tf.KeyQueue(5, 3, seed=2)
    again = ressl_tf.KeyQueue.from_config(queue.get_config())
    np.testing.assert_array_equal(again.keys, queue.keys)


@pytest.mark.parametrize("size, dim, name", [(0, 3, "size"), (3, 0, "dim")])
def test_bad_sizes(size, dim, name):
    with pytest.raises(ValueError, match=f"`{name}` must be .*{name}=0"):
        ressl_tf.KeyQueue(size, dim)
