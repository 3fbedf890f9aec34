"""What the options of a `View` may be."""

import numbers

from ressl_tf.augment import randaugment

# The options that are tuples in themselves.
TUPLES = ("blur_sigma", "mean", "std")


def check_options(option):
    """Raises ValueError for the first option of `View` out of its range."""
    number = numbers.Integral
    size, kernel = option["size"], option["blur_kernel"]
    area, low_high = option["min_area"], option["blur_sigma"]
    mean, std = option["mean"], option["std"]
    magnitude = option["randaugment_magnitude"]
    rules = {
        "a number of pixels, at least 1 (views are square)": {
            "size": isinstance(size, number) and size >= 1
        },
        "a fraction of the image in (0, 1], `min_area` <= `max_area`": {
            "min_area": 0 < area <= 1,
            "max_area": area <= option["max_area"] <= 1,
        },
        "a probability in [0, 1] (0 switches the operation off)": {
            name: 0 <= option[name] <= 1
            for name in ("flip", "jitter", "grayscale", "blur", "solarize")
        },
        "a strength, at least 0 (0 changes nothing)": {
            name: option[name] >= 0
            for name in ("brightness", "contrast", "saturation")
        },
        "a fraction of a turn in [0, 0.5] (divide degrees by 360)": {
            "hue": 0 <= option["hue"] <= 0.5
        },
        "a pair 0 < low <= high (repeat a value to fix it)": {
            "blur_sigma": len(low_high) == 2 and 0 < low_high[0] <= low_high[1]
        },
        "an odd number of taps, at least 1": {
            "blur_kernel": isinstance(kernel, number)
            and kernel % 2 == 1
            and kernel >= 1
        },
        "a number of operations, 0 or more": {
            "randaugment": isinstance(option["randaugment"], number)
            and option["randaugment"] >= 0
        },
        f"an integer from 0 to {randaugment.MAX_MAGNITUDE}": {
            "randaugment_magnitude": isinstance(magnitude, number)
            and 0 <= magnitude <= randaugment.MAX_MAGNITUDE
        },
        "in [0, 1] (divide a threshold in 0-255 by 255)": {
            "solarize_threshold": 0 <= option["solarize_threshold"] <= 1
        },
        "three numbers in (0, 1], for `mean` also 0 (divide by 255)": {
            "mean": len(mean) == 3 and all(0 <= value <= 1 for value in mean),
            "std": len(std) == 3 and all(0 < value <= 1 for value in std),
        },
    }
    if option["blur"]:
        rules[
            f"below twice the view's size, {size}, or its edge cannot be "
            "reflected (take a smaller kernel or blur=0)"
        ] = {"blur_kernel": kernel // 2 < size}
    for requirement, checks in rules.items():
        for name, holds in checks.items():
            if not holds:
                raise ValueError(
                    f"`{name}` must be {requirement}. "
                    f"Received: {name}={option[name]!r}"
                )
