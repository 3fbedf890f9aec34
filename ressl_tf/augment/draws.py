"""Random numbers of views: functions of an explicit seed."""

import zlib

import tensorflow as tf


def uniform(seed, stream, shape):
    """Returns float64 uniform draws in [0, 1), equal inside and outside XLA.

    `stream` names the quantity. Each has its own random stream, so that a new
    one leaves the others as they are; renaming one changes what it draws.

    Float draws differ between the two, and so do integer draws unless the
    algorithm is named. 53 bits, because exp, sqrt and fused multiply-adds
    differ in the last of them: rounded to float32 or to a whole number of
    pixels, nothing is left of that. (24 bits would meet ties of rounding.)
    """
    number = zlib.crc32(stream.encode()) >> 1
    seed = tf.random.experimental.stateless_fold_in(seed, number, alg="philox")
    bits = tf.random.stateless_uniform(
        shape, seed, minval=None, maxval=None, dtype=tf.uint64, alg="philox"
    )
    bits = tf.bitwise.right_shift(bits, tf.constant(11, tf.uint64))
    return tf.cast(bits, tf.float64) * 2.0**-53
