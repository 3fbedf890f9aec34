"""The plan's arithmetic by hand, the simulation against closed forms."""

import math

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from ressl_tf import networks
from ressl_tf import optimizers
from ressl_tf import scaling
from ressl_tf.batch_norm import BatchNormalization
from ressl_tf.benchmark import counts
from ressl_tf.model import ReSSL

RUN = scaling.Run()
A100 = scaling.DEVICES["a100"]


def rng():
    return np.random.default_rng(7)


# --- what the networks cost -------------------------------------------------


@pytest.mark.parametrize("name", scaling.BACKBONES)
def test_backbones_are_as_counted(name):
    network = networks.make_backbone(name, (224, 224, 3), stem="imagenet")
    assert counts.count(network) == scaling.BACKBONES[name]


@pytest.mark.core
def test_head_is_as_counted():
    assert counts.count(networks.make_projector(6, 5, 4)) == scaling.head(
        6, 5, 4
    )


def test_forward_passes_of_the_layouts():
    assert scaling.forward_passes(scaling.VIEWS["one"]) == 4
    assert scaling.forward_passes(scaling.VIEWS["two"]) == 8
    # 224^2 + 192^2 + 160^2 + 128^2 + 96^2 = 138,240 pixels of 50,176
    assert scaling.forward_passes(scaling.VIEWS["multi"]) == pytest.approx(
        3 * 138_240 / 50_176 + 1
    )


def test_queue_share_by_hand():
    # 8 x 65536 x 256 = 134,217,728 against 4 x 8,174,272,512
    assert scaling.queue_flops_share(65536, 256) == pytest.approx(
        134_217_728 / (134_217_728 + 32_697_090_048)
    )


def test_memory_by_hand():
    backbone = scaling.Network(100, 0.0, 1000, 1, 1)
    projector = scaling.Network(30, 0.0, 10, 1, 1)
    predictor = scaling.Network(20, 0.0, 6, 1, 1)
    sizes = dict(
        batch_size=2,
        queue_size=50,
        dim=4,
        views=scaling.Views((1.0, 0.5), 1),
        activation_bytes=2,
        image_values=12,
    )
    heads = projector, predictor
    memory = scaling.memory_per_device(backbone, heads, **sizes)
    assert memory == {
        "parameters": 4 * (3 * 150 + 130),
        "queue": 4 * 3 * 50 * 4,
        "similarities": 4 * 3 * 2 * 50,
        "activations": 2 * 2 * (1500 + 2 * 16),
        "images": 4 * 2 * 12 * 2.5,
        "total": 2320 + 2400 + 1200 + 6128 + 240,
    }
    in_parts = scaling.memory_per_device(
        backbone, heads, gradient_accumulation_steps=2, **sizes
    )
    assert in_parts == {
        "parameters": 4 * (4 * 150 + 130),
        "queue": 2400,
        "similarities": 600,
        "activations": 3064,
        "images": 360,
        "total": 2920 + 2400 + 600 + 3064 + 360,
    }


# --- what the devices tell each other ---------------------------------------


def test_exchanges_are_those_of_a_training_step(two_replicas, monkeypatch):
    with two_replicas.scope():
        images = keras.Input((8, 8, 3))
        x = keras.layers.Conv2D(4, 3, use_bias=False)(images)
        x = BatchNormalization()(x)
        x = keras.layers.GlobalAveragePooling2D()(x)
        backbone = keras.Model(images, x)
        model = ReSSL(
            backbone,
            # 9: two times 8 numbers would be as many as the metrics' 16
            networks.make_projector(4, 9, 5),
            networks.make_predictor(5, 9),
            queue_size=16,
        )
        model.compile(optimizers.make_optimizer("sgd", 0.1))

    contexts = []
    tf.function(
        lambda: two_replicas.run(
            lambda: contexts.append(type(tf.distribute.get_replica_context()))
        )
    )()
    seen = {"gradients": [], "batch_norm": [], "metrics": []}
    real = contexts[0].all_reduce

    def all_reduce(self, operation, value, *args, **kwargs):
        sizes = [t.shape.num_elements() for t in tf.nest.flatten(value)]
        name = "batch_norm"
        if len(sizes) > 1:
            name = "gradients"
        elif sizes == [6 + 2 * 5]:
            name = "metrics"
        seen[name].append(sum(sizes))
        return real(self, operation, value, *args, **kwargs)

    monkeypatch.setattr(contexts[0], "all_reduce", all_reduce)
    view = tf.zeros((4, 8, 8, 3))
    batch = {"student": (view, view, view), "teacher": (view,)}
    tf.function(
        lambda: two_replicas.run(model.train_step, args=(batch,))
    ).get_concrete_function()

    run = RUN._replace(
        backbone=counts.count(backbone),
        feature_dim=4,
        hidden_dim=9,
        dim=5,
        batch_size=8,
        views=scaling.Views((1.0,) * 3, 1),
    )
    expected = scaling.exchanges(run)
    for name, sizes in seen.items():
        count, size = expected[name]
        # Both replicas were seen.
        assert (2 * count, 2 * size) == (len(sizes), 4 * sum(sizes)), name
    assert expected["keys"] == (1, 4 * 8 * 5)


def test_all_reduce_by_hand():
    device = A100._replace(
        per_host=4,
        link=10.0,
        network=5.0,
        link_latency=1.0,
        network_latency=3.0,
    )
    assert scaling.all_reduce_seconds(40.0, device, 1) == 0.0
    # 2 x 3/4 x 40 / 10 and 2 x 2 messages
    assert scaling.all_reduce_seconds(40.0, device, 4) == 6.0 + 4.0
    # then 10 bytes each between two hosts: 2 x 1/2 x 10 / 5 and 2 messages
    assert scaling.all_reduce_seconds(40.0, device, 8) == 10.0 + 2.0 + 6.0


# --- the plan ---------------------------------------------------------------

QUIET = {
    "device": {"jitter": 0.0},
    "input": {"jitter": 0.0, "stall_probability": 0.0},
}


def one_plan(**changes):
    kwargs = {"devices": [8], "batch_sizes": [1024], "parameters": QUIET}
    return scaling.plans(**{**kwargs, **changes})[0]


def test_compute_time_by_hand():
    row = one_plan(queue_size=1)
    # Four forward passes of 128 images; 2375 images/s are three each.
    assert row["compute"] == pytest.approx(128 * 4 / (3 * 2375), rel=1e-6)
    assert row["hosts"] == 1
    twice = one_plan(queue_size=1, views="two")
    assert twice["compute"] == pytest.approx(2 * row["compute"], rel=1e-6)


def test_without_jitter_the_simulated_step_is_the_slower_side():
    fast = {**QUIET["input"], "decode": 1e-9, "strong_view": 0, "weak_view": 0}
    fast.update(storage_per_host=1e15, storage_total=1e15)
    row = one_plan(parameters={**QUIET, "input": fast})
    assert row["bottleneck"] == "compute"
    assert row["step"] == pytest.approx(
        row["compute"] + row["overhead"] + row["exchange"]
    )
    slow = {**fast, "decode": 1.0}
    row = one_plan(parameters={**QUIET, "input": slow})
    assert row["bottleneck"] == "cores"
    assert row["step"] == pytest.approx(1024 * 1.0 / (128 * 0.8))
    slow = {**fast, "storage_per_host": 1e6, "image_bytes": 1e4}
    row = one_plan(parameters={**QUIET, "input": slow})
    assert row["bottleneck"] == "storage"
    assert row["step"] == pytest.approx(1024 * 1e4 / 1e6)


def test_hours_and_bytes_follow_from_the_step():
    row = one_plan(images=10_240, epochs=3)
    assert row["images_per_second"] == pytest.approx(1024 / row["step"])
    assert row["read_total"] == 30 * 1024 * scaling.Input().image_bytes
    work = 30 * row["step"] / 3600
    assert row["hours"] == pytest.approx(work / (1 - row["lost"]))
    assert row["device_hours"] == pytest.approx(8 * row["hours"])


def test_the_plan_is_a_function_of_its_seed():
    assert scaling.plans(devices=[8], batch_sizes=[1024]) == scaling.plans(
        devices=[8], batch_sizes=[1024]
    )


def test_pairs_that_do_not_divide_are_left_out():
    rows = scaling.plans(devices=[8, 512], batch_sizes=[64, 1024])
    pairs = [(row["devices"], row["batch_size"]) for row in rows]
    assert pairs == [(8, 64), (8, 1024), (512, 1024)]
    assert scaling.table(rows).count("\n") == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "abacus"}, "`device` must be one of v100"),
        ({"views": "six"}, "`views` must be one of one"),
        ({"backbone": "vgg"}, "`backbone` must be one of resnet18"),
        ({"batch_sizes": [7]}, "batch_sizes=.7., devices=.8."),
        ({"images": 100.0}, "at least one batch"),
        ({"parameters": {"input": {"decoding": 1}}}, "'decoding'"),
        ({"parameters": {"input": {"decode": "1"}}}, "decode='1'"),
    ],
)
def test_bad_input_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        one_plan(**changes)


def test_variations_change_what_they_say():
    varied = scaling.variations(devices=[512], batch_sizes=[4096])
    steps = {name: rows[0]["step"] for name, rows in varied.items()}
    assert set(steps) == set(scaling.VARIATIONS)
    base = steps["as assumed"]
    assert steps["no jitter, no stalls"] < base
    assert steps["jitter of devices 0.1"] > base
    assert steps["overhead 5 ms"] < base
    assert steps["... and prefetch 1"] > steps["... and prefetch 32"]
    assert "prefetch 32" in scaling.variations_table(varied)


def test_failures_are_simulated_as_expected():
    rows = scaling.failures([512, 4096], scaling.Reliability())
    for row in rows:
        assert row["simulated"] == pytest.approx(row["expected"], rel=0.1)
    losses = [row["simulated"] for row in rows]
    assert losses.index(min(losses[3:])) == 4  # Young's is the least
    assert scaling.failures_table(rows).count("\n") == 6


# --- the simulation ---------------------------------------------------------


def simulate(**changes):
    kwargs = {
        "steps": 50,
        "devices": 4,
        "hosts": 2,
        "device_seconds": 2.0,
        "shared_seconds": 0.5,
    }
    return scaling.simulate_steps(rng(), **{**kwargs, **changes})


def test_without_jitter_or_input_steps_are_all_alike():
    np.testing.assert_allclose(simulate(), 2.5 * np.arange(1, 51))


@pytest.mark.parametrize("devices", [1, 8, 512])
def test_exponential_stragglers_wait_for_the_harmonic_number(devices):
    ends = simulate(
        steps=4000,
        devices=devices,
        shared_seconds=0.0,
        device_jitter=lambda generator, shape: generator.exponential(
            size=shape
        ),
    )
    harmonic = sum(1 / k for k in range(1, devices + 1))
    assert ends[-1] / 4000 == pytest.approx(2.0 * harmonic, rel=0.05)


def test_normal_stragglers_wait_for_the_largest_of_n():
    ends = simulate(
        steps=4000,
        devices=64,
        shared_seconds=0.0,
        device_jitter=scaling.normal_jitter(0.1),
    )
    # Mean of the largest of 64 standard normal numbers, by integration.
    x = np.linspace(-8, 8, 20001)
    below = 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    largest = 8 - (below**64).sum() * (x[1] - x[0])
    assert largest == pytest.approx(2.3437, abs=1e-3)
    assert ends[-1] / 4000 == pytest.approx(2 * (1 + 0.1 * largest), rel=0.003)


@pytest.mark.parametrize("input_seconds", [1.0, 2.0, 4.0])
def test_steady_input_makes_the_slower_of_both(input_seconds):
    ends = simulate(input_seconds=input_seconds, prefetch=2)
    np.testing.assert_allclose(np.diff(ends), max(2.5, input_seconds))
    assert ends[0] == input_seconds + 2.5


def uneven(generator, shape):
    """Batches that take nothing and twice the mean by turns."""
    factors = np.zeros(shape)
    factors[1::2] = 2.0
    return factors


def test_a_buffer_evens_out_what_one_batch_cannot():
    # By hand: input of 0 and 6 by turns against steps of 2.5 gives pairs of
    # steps in max(6, 5) seconds with room for two batches ahead; with room
    # for one, the long one begins only when the step before it does.
    kwargs = {"steps": 400, "input_seconds": 3.0, "input_jitter": uneven}
    buffered = simulate(prefetch=2, **kwargs)
    assert buffered[-1] / 400 == pytest.approx(3.0, rel=0.01)
    single = simulate(prefetch=1, **kwargs)
    assert single[-1] / 400 > 3.2


def test_a_large_buffer_leaves_the_larger_mean():
    kwargs = {
        "steps": 20_000,
        "hosts": 1,
        "input_jitter": lambda generator, shape: generator.exponential(
            size=shape
        ),
    }
    for mean in (2.0, 3.0):
        ends = simulate(prefetch=1000, input_seconds=mean, **kwargs)
        assert ends[-1] / 20_000 == pytest.approx(max(2.5, mean), rel=0.03)
    single = simulate(prefetch=1, input_seconds=2.0, **kwargs)
    assert single[-1] / 20_000 > 2.7


def test_stalls_without_a_buffer_to_hide_them_add_their_mean():
    # One host, making batches takes no time but for the stalls; a batch is
    # begun when the one before it is, 2.5 seconds ahead of its use.
    ends = simulate(
        steps=40_000,
        hosts=1,
        stall_probability=0.01,
        stall_seconds=50.0,
        prefetch=1,
    )
    # E[max(stall - 2.5, 0)] of an exponential: mean e^(-2.5 / mean)
    expected = 2.5 + 0.01 * 50 * math.exp(-2.5 / 50)
    assert ends[-1] / 40_000 == pytest.approx(expected, rel=0.05)


FAILURES = {
    "work": 1000.0,
    "save_seconds": 1.0,
    "restart_seconds": 5.0,
    "mtbf": 200.0,
}


@pytest.mark.parametrize("interval", [5.0, 20.0, 100.0])
def test_failures_cost_what_daly_says(interval):
    elapsed = scaling.simulate_failures(
        rng(), interval=interval, runs=4000, **FAILURES
    )
    assert elapsed.mean() == pytest.approx(
        scaling.expected_seconds(interval=interval, **FAILURES), rel=0.01
    )


def test_without_failures_only_saving_is_added():
    elapsed = scaling.simulate_failures(
        rng(), interval=10.0, runs=3, **{**FAILURES, "mtbf": 1e12}
    )
    np.testing.assert_allclose(elapsed, 1100.0)


def test_youngs_interval_is_the_simulated_best():
    best = scaling.young_interval(1.0, 200.0)
    assert best == 20.0
    means = {
        interval: scaling.simulate_failures(
            rng(), interval=interval, runs=4000, **FAILURES
        ).mean()
        for interval in (best / 4, best, 4 * best)
    }
    assert min(means, key=means.get) == best
