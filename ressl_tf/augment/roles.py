"""The views of the two roles, student and teacher."""

import numbers

from ressl_tf.augment.options import TUPLES
from ressl_tf.augment.view import View


def make_view(size, **options):
    """Returns a `View`; its arguments are `View`'s."""
    return View(size, **options)


def make_views(size, *, crops=1, **options):
    """Returns the views of one role, as `ReSSL` takes them: a tuple.

    Multi-crop is several sizes, each with the areas it is cut from:

        make_views((224, 96), min_area=(0.14, 0.05), max_area=(1.0, 0.429))

    Args:
        size: as in `View`, or a tuple with one value a view.
        crops: number of views that differ in their random numbers alone.
        **options: of `View`. Each may be a tuple of one value a view if `size`
            is a tuple; options that are tuples in themselves are for all.

    Raises:
        ValueError: `crops` is below 1, or goes with several sizes, or tuples
            differ in length; and as `View`.
    """
    if not isinstance(crops, numbers.Integral) or crops < 1:
        raise ValueError(
            "`crops` must be a number of views, at least 1. "
            f"Received: crops={crops!r}"
        )
    if not isinstance(size, tuple | list):
        return tuple(make_view(size, **options) for _ in range(crops))
    if crops != 1:
        raise ValueError(
            "`crops` must not be given with one `size` a view: repeat sizes "
            f"instead. Received: crops={crops}, size={size}"
        )
    views = []
    for number, own in enumerate(size):
        own_options = {}
        for name, value in options.items():
            if isinstance(value, tuple | list) and name not in TUPLES:
                if len(value) != len(size):
                    raise ValueError(
                        f"`{name}` must have one value, or one for each of "
                        f"the {len(size)} sizes {tuple(size)}. "
                        f"Received: {name}={value}"
                    )
                value = value[number]
            own_options[name] = value
        views.append(make_view(own, **own_options))
    return tuple(views)


def weak_view(size, **overrides):
    """Returns the teacher's view: crop and flip."""
    return make_view(size, **overrides)


def strong_view(size, **overrides):
    """Returns the student's view for small images (CIFAR to Tiny ImageNet).

    Args:
        size: height and width of the view in pixels.
        **overrides: any other argument of `View`, instead of the value here.
    """
    options = {
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.4,
        "hue": 0.1,
        "jitter": 0.8,
        "grayscale": 0.2,
        "blur": 0.5,
    }
    return make_view(size, **{**options, **overrides})
