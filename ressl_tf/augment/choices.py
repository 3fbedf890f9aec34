"""Which images get which operation: two ways, with the same result.

`OneByOne` takes batches of one image and computes nothing but what was chosen:
for CPUs, where most of a view's time would go into what is then thrown away.
`AllAtOnce` computes everything for the whole batch and selects: for
accelerators, which would idle in a loop over images.

An operation is a function of planes (B, 3, H, W), and returns the same.
"""

import tensorflow as tf


class OneByOne:
    """For planes (1, 3, H, W)."""

    @staticmethod
    def when(mask, operation, planes):
        """Applies the operation where the (1,) `mask` is set."""
        return tf.cond(mask[0], lambda: operation(planes), lambda: planes)

    @staticmethod
    def switch(index, operations, planes):
        """Applies the operation that the (1,) `index` names."""
        return tf.switch_case(
            index[0],
            [
                lambda operation=operation: operation(planes)
                for operation in operations
            ],
        )


class AllAtOnce:
    """For planes (B, 3, H, W)."""

    @staticmethod
    def when(mask, operation, planes):
        """Applies the operation where the (B,) `mask` is set."""
        return tf.where(per_image(mask), operation(planes), planes)

    @staticmethod
    def switch(index, operations, planes):
        """Applies to each image the operation that the (B,) `index` names."""
        result = planes
        for number, operation in enumerate(operations):
            chosen = per_image(index == number)
            result = tf.where(chosen, operation(planes), result)
        return result


def per_image(values):
    """Reshapes (B,) to (B, 1, 1, 1)."""
    return tf.reshape(values, [-1, 1, 1, 1])
