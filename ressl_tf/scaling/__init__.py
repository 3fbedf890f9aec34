"""From measured costs to what a run needs: devices, hosts, network, hours.

Arithmetic and a small simulation, in numpy. Sizes in bytes, times in seconds,
rates per second. `costs` holds the formulas and the figures they start from,
`simulation` what no formula gives, `planning` puts them together.
docs/scaling.md explains the results.

Letters: n devices, B images per step over all devices, K queue size, D
embedding size.
"""

from ressl_tf.scaling.costs import BACKBONES
from ressl_tf.scaling.costs import BFLOAT16
from ressl_tf.scaling.costs import DEVICES
from ressl_tf.scaling.costs import FLOAT32
from ressl_tf.scaling.costs import HOUR
from ressl_tf.scaling.costs import VIEWS
from ressl_tf.scaling.costs import Device
from ressl_tf.scaling.costs import Input
from ressl_tf.scaling.costs import Network
from ressl_tf.scaling.costs import Reliability
from ressl_tf.scaling.costs import Run
from ressl_tf.scaling.costs import Views
from ressl_tf.scaling.costs import all_reduce_seconds
from ressl_tf.scaling.costs import checkpoint_bytes
from ressl_tf.scaling.costs import exchange_seconds
from ressl_tf.scaling.costs import exchanges
from ressl_tf.scaling.costs import forward_passes
from ressl_tf.scaling.costs import head
from ressl_tf.scaling.costs import heads
from ressl_tf.scaling.costs import input_core_seconds
from ressl_tf.scaling.costs import memory_per_device
from ressl_tf.scaling.costs import queue_flops_share
from ressl_tf.scaling.planning import VARIATIONS
from ressl_tf.scaling.planning import failures
from ressl_tf.scaling.planning import failures_table
from ressl_tf.scaling.planning import plan
from ressl_tf.scaling.planning import plans
from ressl_tf.scaling.planning import table
from ressl_tf.scaling.planning import variations
from ressl_tf.scaling.planning import variations_table
from ressl_tf.scaling.simulation import expected_seconds
from ressl_tf.scaling.simulation import normal_jitter
from ressl_tf.scaling.simulation import simulate_failures
from ressl_tf.scaling.simulation import simulate_steps
from ressl_tf.scaling.simulation import young_interval

__all__ = [
    "BACKBONES",
    "BFLOAT16",
    "DEVICES",
    "Device",
    "FLOAT32",
    "HOUR",
    "Input",
    "Network",
    "Reliability",
    "Run",
    "VARIATIONS",
    "VIEWS",
    "Views",
    "all_reduce_seconds",
    "checkpoint_bytes",
    "exchange_seconds",
    "exchanges",
    "expected_seconds",
    "failures",
    "failures_table",
    "forward_passes",
    "head",
    "heads",
    "input_core_seconds",
    "memory_per_device",
    "normal_jitter",
    "plan",
    "plans",
    "queue_flops_share",
    "simulate_failures",
    "simulate_steps",
    "table",
    "variations",
    "variations_table",
    "young_interval",
]
