"""What a step computes, keeps, reads and sends: formulas.

"Published" figures have their source in docs/scaling.md, "assumed" ones have
none and are to be replaced by what is known of the machines at hand.
"""

import math
from typing import NamedTuple

FLOAT32 = 4
BFLOAT16 = 2
HOUR = 3600.0


class Network(NamedTuple):
    """A network's size, for one image; `benchmark.counts.count` counts it."""

    parameters: int  # trainable
    forward_flops: float  # a multiply-add is two
    activations: int  # values that backpropagation needs again
    bn_layers: int
    bn_channels: int  # over all of these layers


# The backbones of the ImageNet recipes at 224 pixels, counted.
BACKBONES = {
    "resnet18": Network(11_176_512, 3_627_122_688, 6_378_988, 20, 4_800),
    "resnet34": Network(21_284_672, 7_326_498_816, 8_887_788, 36, 8_512),
    "resnet50": Network(23_508_032, 8_174_272_512, 22_705_900, 53, 26_560),
}


class Views(NamedTuple):
    """The views of one image."""

    student: tuple  # pixels of each, as a share of 224 x 224
    teacher: int  # of 224 pixels


VIEWS = {
    "one": Views((1.0,), 1),
    "two": Views((1.0, 1.0), 2),
    "multi": Views(
        tuple((size / 224) ** 2 for size in (224, 192, 160, 128, 96)), 1
    ),
}


class Device(NamedTuple):
    """An accelerator with its share of host and network.

    `images_per_second` is that of supervised training of a ResNet-50: three
    forward passes' worth an image, with input and optimiser.
    """

    images_per_second: float
    memory: float
    per_host: int
    host_cores: int
    link: float  # bytes/s of one device, one way, to others of its host
    network: float  # the same, to other hosts
    source: str
    link_latency: float = 2e-6  # assumed; of one message
    network_latency: float = 5e-6  # assumed
    # Assumed: what a step takes however small its batch (a thousand kernels
    # to launch, the optimiser, the moving average).
    step_overhead: float = 0.01
    jitter: float = 0.02  # assumed; deviation of a step's time over its mean


DEVICES = {
    "v100_float32": Device(
        412, 16e9, 8, 40, 150e9, 6.25e9, "published: NVIDIA, see docs"
    ),
    "v100": Device(
        1270, 16e9, 8, 40, 150e9, 6.25e9, "published: NVIDIA, see docs"
    ),
    "a100": Device(
        2375, 40e9, 8, 128, 300e9, 25e9, "published: NVIDIA, see docs"
    ),
    # A replica is one of a chip's two cores.
    "tpu_v3": Device(
        370, 16e9, 8, 48, 166e9, 166e9, "published: SimCLR, Google, see docs"
    ),
}


class Input(NamedTuple):
    """What an image costs before it is on the device.

    The first four are measured: `tools.benchmark host`, 63 full-size ImageNet
    JPEGs, one core of a Xeon server of 2023.
    """

    image_bytes: float = 114e3  # of a file
    decode: float = 1.65e-3  # core-seconds, of a file in full size
    strong_view: float = 1.73e-3  # core-seconds, of 224 x 224
    weak_view: float = 0.77e-3
    storage_per_host: float = 2e9  # assumed; bytes/s
    storage_total: float = 100e9  # assumed
    usable_cores: float = 0.8  # assumed; share that is left for input
    prefetch: int = 4  # batches made ahead
    jitter: float = 0.1  # assumed; deviation of a batch's time over its mean
    stall_probability: float = 1e-4  # assumed; of a batch
    stall: float = 1.0  # assumed; mean seconds


class Reliability(NamedTuple):
    """Failures and checkpoints."""

    # Published: 419 unexpected interruptions in 54 days of 16,384 GPUs.
    device_mtbf: float = 54 * 24 * HOUR * 16384 / 419
    save_overhead: float = 5.0  # assumed; beside writing the bytes
    restart: float = 300.0  # assumed; to be noticed, restarted, traced


class Run(NamedTuple):
    """What is to be trained."""

    images: float = 1.3e6
    epochs: float = 200
    batch_size: int = 1024  # B
    backbone: Network = BACKBONES["resnet50"]
    feature_dim: int = 2048
    hidden_dim: int = 4096
    dim: int = 256  # D
    queue_size: int = 65536  # K
    views: Views = VIEWS["one"]
    activation_bytes: int = BFLOAT16


def head(input_dim, hidden_dim, output_dim):
    """The `Network` of a projector or predictor with batch normalisation."""
    return Network(
        parameters=(
            input_dim * hidden_dim
            + 2 * hidden_dim
            + hidden_dim * output_dim
            + output_dim
        ),
        forward_flops=2.0 * hidden_dim * (input_dim + output_dim),
        activations=input_dim + 2 * hidden_dim,
        bn_layers=1,
        bn_channels=hidden_dim,
    )


def heads(run):
    """Projector and predictor of a run."""
    return (
        head(run.feature_dim, run.hidden_dim, run.dim),
        head(run.dim, run.hidden_dim, run.dim),
    )


def memory_per_device(
    backbone,
    heads,
    *,
    batch_size,
    queue_size,
    dim,
    views=VIEWS["one"],
    activation_bytes=FLOAT32,
    image_values=3 * 224**2,
    gradient_accumulation_steps=1,
):
    """Bytes on one device at the moment of a step that needs most.

    With S parameters of the student's side (backbone, projector, predictor)
    and T of the teacher's (backbone, projector), b = `batch_size`, p the part
    of it that is learnt from at once, A values kept per image of the backbone
    and a_v a view's share of the pixels:

        parameters    4 (3 S + T)    weights, one momentum slot, gradients;
                                     one S more, the sum, with several parts
        queue         12 K D         keys, normalised keys, and either their
                                     squares or the copy that is written
        similarities  12 p K         three of the (p, K) matrices at once
        activations   bytes p (A sum(a_v) + heads')
        images        4 b (views)    and those of one part, with several

    The keys are copied when they are written, so two sets of them live then.
    The similarities of student and teacher, and the exponentials of one of
    them: three. Further views go through the same three. The teacher's
    activations are freed before the student's are complete.

    Args:
        backbone: `Network`, for one image of the largest view.
        heads: projector's and predictor's `Network`.
        batch_size: b, images on this device.
        queue_size: K.
        dim: D.
        views: `Views`.
        activation_bytes: 4, or 2 for mixed precision.
        image_values: numbers in an image of the largest view.
        gradient_accumulation_steps: number of parts of the batch.

    Returns:
        A dict of bytes: "parameters", "queue", "similarities", "activations",
        "images" and their sum, "total".
    """
    projector, predictor = heads
    teacher = backbone.parameters + projector.parameters
    student = teacher + predictor.parameters
    area = sum(views.student)
    kept = backbone.activations * area + len(views.student) * (
        projector.activations + predictor.activations
    )
    part = batch_size / gradient_accumulation_steps
    several = gradient_accumulation_steps > 1
    parts = {
        "parameters": FLOAT32 * ((3 + several) * student + teacher),
        "queue": FLOAT32 * 3 * queue_size * dim,
        "similarities": FLOAT32 * 3 * part * queue_size,
        "activations": activation_bytes * part * kept,
        "images": FLOAT32
        * (batch_size + several * part)
        * image_values
        * (area + views.teacher),
    }
    return {**parts, "total": sum(parts.values())}


def forward_passes(views):
    """Cost of a step, in forward passes of one 224-pixel image.

    A student's view costs three (its own and twice that for the gradients), a
    teacher's one; supervised training costs three.
    """
    return 3 * sum(views.student) + views.teacher


def queue_flops_share(queue_size, dim, backbone=BACKBONES["resnet50"]):
    """Share of the similarities in the operations of a step of one crop.

    2 K D for each of the two similarities of an image and of the two keys that
    they expect (`losses`), against `forward_passes` of the backbone.
    """
    queue = 8 * queue_size * dim
    network = forward_passes(VIEWS["one"]) * backbone.forward_flops
    return queue / (queue + network)


def exchanges(run):
    """What the devices tell each other in a step.

    `batch_norm.BatchNormalization` averages one vector of 2 C numbers over all
    devices in each forward pass, and another in the backward pass.

    Args:
        run: `Run`.

    Returns:
        {name: (number of collectives, bytes of all of them)}: "gradients",
        "batch_norm" and "metrics" are all-reduces, "keys" is a gather.
    """
    projector, predictor = heads(run)
    teacher = (run.backbone, projector)
    student = (run.backbone, projector, predictor)
    student_passes = 2 * len(run.views.student)  # forward and backward
    teacher_passes = run.views.teacher

    def batch_norm(field):
        return student_passes * sum(
            getattr(network, field) for network in student
        ) + teacher_passes * sum(getattr(network, field) for network in teacher)

    return {
        "gradients": (1, FLOAT32 * sum(n.parameters for n in student)),
        "batch_norm": (
            batch_norm("bn_layers"),
            FLOAT32 * 2 * batch_norm("bn_channels"),
        ),
        "keys": (1, FLOAT32 * run.batch_size * run.dim),
        "metrics": (1, FLOAT32 * (6 + 2 * run.dim)),
    }


def all_reduce_seconds(size, device, devices):
    """Time of one all-reduce: within the hosts, then between them.

    Bandwidth as in a ring, 2 (n - 1) / n of the bytes each way; latency as in
    a tree, 2 log2(n) messages. Between hosts every device carries its share.
    """
    inner = min(devices, device.per_host)
    outer = math.ceil(devices / device.per_host)

    def level(size, members, bandwidth, latency):
        if members == 1:
            return 0.0
        return (
            2 * (members - 1) / members * size / bandwidth
            + 2 * math.ceil(math.log2(members)) * latency
        )

    return level(size, inner, device.link, device.link_latency) + level(
        size / inner, outer, device.network, device.network_latency
    )


def exchange_seconds(run, device, devices):
    """Time of a step's `exchanges`, none of it hidden behind computing."""
    total = 0.0
    for name, (count, size) in exchanges(run).items():
        seconds = count * all_reduce_seconds(size / count, device, devices)
        # A gather is the second half of an all-reduce.
        total += seconds / 2 if name == "keys" else seconds
    return total


def input_core_seconds(views, input_cost):
    """Core-seconds to make the views of one image; it is decoded once."""
    return (
        input_cost.decode
        + sum(views.student) * input_cost.strong_view
        + views.teacher * input_cost.weak_view
    )


def checkpoint_bytes(run):
    """Weights, slots, teacher and queue; batch-norm's statistics left out."""
    projector, predictor = heads(run)
    teacher = run.backbone.parameters + projector.parameters
    student = teacher + predictor.parameters
    return FLOAT32 * (2 * student + teacher + run.queue_size * run.dim)
