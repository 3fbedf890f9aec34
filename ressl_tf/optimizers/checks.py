"""What the optimisers check alike."""


def check_fraction(argument, value):
    if not 0 <= value < 1:
        raise ValueError(
            f"`{argument}` must be in [0, 1). Received: {argument}={value}"
        )


def check_not_negative(argument, value):
    if not value >= 0:
        raise ValueError(
            f"`{argument}` must be at least 0. Received: {argument}={value}"
        )
