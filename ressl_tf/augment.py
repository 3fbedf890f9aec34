"""Views: random crops with colour distortion, as keras-cv layers.

`strong_view` and `weak_view` are the method's two augmentations, `make_view`
any other. Drawing and applying are apart: `View.sample` is a pure function of
an explicit seed, `View.augment_images` a pure function of what was drawn, and
`View.apply`, for input pipelines, is both, compiled. So a resumed, re-sharded
or parallel run sees the same images.

Every operation is a function of images in [0, 1] and one parameter per image,
with the semantics of torchvision on float images. B is the batch size. To add
one: write its function, give `View` its arguments, draw its parameters in
`View.sample`, apply them in `View._distort`.
"""

import contextlib
import io
import itertools
import math
import numbers
import random
import zlib

import tensorflow as tf
from tensorflow import keras

# Under Keras 2, keras-cv announces its backend on stdout at import.
with contextlib.redirect_stdout(io.StringIO()):
    import keras_cv

# torchvision's weights: they sum to 0.9999, so white turns to 0.9999.
_GRAY_WEIGHTS = (0.2989, 0.587, 0.114)
_CROP_TRIES = 10
_CROP_ASPECTS = (3 / 4, 4 / 3)

# What `order` of `color_jitter` counts.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
_ORDERS = tuple(itertools.permutations(range(4)))

_TUPLES = ("blur_sigma", "mean", "std")


def _uniform(seed, stream, shape):
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


def _per_image(values):
    """Reshapes (B,) to (B, 1, 1, 1)."""
    return tf.reshape(values, [-1, 1, 1, 1])


def _where(mask, changed, images):
    """Returns `changed` where the (B,) `mask` is set, else `images`."""
    return tf.where(_per_image(mask), changed, images)


def sample_crop_boxes(seed, batch_size, height, width, min_area, max_area):
    """Draws the boxes of a random resized crop.

    Each try draws an area, uniform between the two fractions of the image, and
    a log-uniform aspect (width / height) in [3/4, 4/3]. The first of 10 tries
    that fits is placed uniformly; if none does, the box is the largest centred
    one with an aspect in that range.

    Args:
        seed: (2,) int32 or int64.
        batch_size: B, int or scalar tensor.
        height: of the images, int or scalar tensor.
        width: of the images, int or scalar tensor.
        min_area: smallest fraction of the image's area, in (0, 1].
        max_area: largest fraction of the image's area, in (0, 1].

    Returns:
        (B, 4) int32: top, left, height, width in pixels.
    """
    tries = [batch_size, _CROP_TRIES]
    image_height = tf.cast(height, tf.float64)
    image_width = tf.cast(width, tf.float64)
    fraction = _uniform(seed, "crop_area", tries) * (max_area - min_area)
    area = (fraction + min_area) * image_height * image_width
    low, high = (math.log(aspect) for aspect in _CROP_ASPECTS)
    aspect = tf.exp(_uniform(seed, "crop_aspect", tries) * (high - low) + low)

    heights = tf.round(tf.sqrt(area / aspect))
    widths = tf.round(tf.sqrt(area * aspect))
    fits = (heights > 0) & (heights <= image_height)
    fits &= (widths > 0) & (widths <= image_width)
    number = tf.where(fits, tf.range(_CROP_TRIES), _CROP_TRIES)
    chosen = tf.reduce_min(number, axis=1)
    found = chosen < _CROP_TRIES
    chosen = tf.minimum(chosen, _CROP_TRIES - 1)

    def place(extents, whole, fallback, stream):
        extent = tf.gather(extents, chosen, batch_dims=1)
        extent = tf.where(found, extent, tf.minimum(whole, tf.round(fallback)))
        room = whole - extent
        offset = _uniform(seed, stream, [batch_size]) * (room + 1)
        return tf.floor(tf.where(found, offset, room / 2)), extent

    narrowest, widest = _CROP_ASPECTS
    top, crop_height = place(
        heights, image_height, image_width / narrowest, "crop_top"
    )
    left, crop_width = place(
        widths, image_width, image_height * widest, "crop_left"
    )
    boxes = tf.stack([top, left, crop_height, crop_width], axis=1)
    return tf.cast(boxes, tf.int32)


def _bilinear_taps(start, length, size):
    """Returns the two source positions, (B, size), and the second's weight.

    In whole numbers, so that the positions are exact: pixel i of the result
    looks at ((2 i + 1) length - size) / (2 size), kept within the crop.
    """
    start, length = start[:, None], length[:, None]
    position = (2 * tf.range(size) + 1) * length - size
    position = tf.clip_by_value(position, 0, 2 * size * (length - 1))
    first = position // (2 * size)
    second = tf.minimum(first + 1, length - 1)
    rest = tf.cast(position - 2 * size * first, tf.float32)
    return start + first, start + second, rest / (2 * size)


def resized_crop(images, boxes, size, flip=None):
    """Cuts a box out of each image and resizes it, bilinear, no antialiasing.

    What lies outside the box does not enter the result.

    Args:
        images: (B, H, W, C) float32.
        boxes: (B, 4) int32: top, left, height, width, within the image.
        size: height and width of the result, int.
        flip: (B,) bool, the crops to mirror left to right; None for none.

    Returns:
        (B, size, size, C) float32.
    """
    # Two gathers of neighbours are faster than two products with a matrix of
    # weights, compiled or not, at 32 pixels and more so at 224.
    top, left, height, width = tf.unstack(boxes, axis=1)
    first, second, weight = _bilinear_taps(top, height, size)
    above = tf.gather(images, first, axis=1, batch_dims=1)
    below = tf.gather(images, second, axis=1, batch_dims=1)
    images = above + (below - above) * weight[:, :, None, None]

    columns = _bilinear_taps(left, width, size)
    if flip is not None:
        columns = [tf.where(flip[:, None], c[:, ::-1], c) for c in columns]
    first, second, weight = columns
    before = tf.gather(images, first, axis=2, batch_dims=1)
    after = tf.gather(images, second, axis=2, batch_dims=1)
    return before + (after - before) * weight[:, None, :, None]


def _gray(images):
    """Returns the gray value of each pixel, (B, H, W, 1)."""
    return tf.reduce_sum(images * _GRAY_WEIGHTS, axis=-1, keepdims=True)


def _mean(gray):
    """Returns the mean of each (H, W, 1) image, (B, 1, 1, 1)."""
    return tf.reduce_mean(gray, axis=[1, 2], keepdims=True)


def _blend(images, background, factor):
    factor = _per_image(factor)
    mixed = factor * images + (1 - factor) * background
    return tf.clip_by_value(mixed, 0.0, 1.0)


def adjust_brightness(images, factor):
    """Blends (B, H, W, 3) images with black, by a (B,) factor.

    Like the two blends below: factor x image + (1 - factor) x background,
    clipped to [0, 1].
    """
    return _blend(images, 0.0, factor)


def adjust_contrast(images, factor):
    """Blends (B, H, W, 3) images with their mean gray, by a (B,) factor."""
    return _blend(images, _mean(_gray(images)), factor)


def adjust_saturation(images, factor):
    """Blends (B, H, W, 3) images with their gray images, by a (B,) factor."""
    return _blend(images, _gray(images), factor)


def adjust_hue(images, shift):
    """Turns the hue of (B, H, W, 3) images by a (B,) fraction of a turn."""
    red, green, blue = tf.unstack(images, axis=-1)
    value = tf.maximum(tf.maximum(red, green), blue)
    chroma = value - tf.minimum(tf.minimum(red, green), blue)
    divisor = tf.where(chroma > 0, chroma, 1.0)
    # In sixths of a turn: 0 is red, 2 green, 4 blue.
    hue = tf.where(
        value == red,
        (green - blue) / divisor,
        tf.where(
            value == green,
            (blue - red) / divisor + 2.0,
            (red - green) / divisor + 4.0,
        ),
    )
    hue += 6.0 * shift[:, None, None]
    channels = []
    for offset in (5.0, 3.0, 1.0):
        # Not floormod: XLA's is seven times slower.
        turn = hue + offset
        turn -= 6.0 * tf.floor(turn / 6.0)
        weight = tf.clip_by_value(tf.minimum(turn, 4.0 - turn), 0.0, 1.0)
        channels.append(value - chroma * weight)
    return tf.stack(channels, axis=-1)


def color_jitter(images, order, brightness, contrast, saturation, hue, mask):
    """Applies the four adjustments to each image in its own order.

    Args:
        images: (B, H, W, 3) float32 in [0, 1].
        order: (B, 4) int32, each row a permutation of BRIGHTNESS, CONTRAST,
            SATURATION and HUE: which comes first, second, third, fourth.
        brightness: (B,) float32 factor.
        contrast: (B,) float32 factor.
        saturation: (B,) float32 factor.
        hue: (B,) float32 fraction of a turn.
        mask: (B,) bool, the images to change.

    Returns:
        (B, H, W, 3) float32 in [0, 1].
    """
    factors = tf.stack([brightness, contrast, saturation, hue], axis=1)
    hue_turn = tf.reduce_sum(tf.where(order == HUE, tf.range(4), 0), axis=1)

    def blend(images, turn, active):
        kind = order[:, turn]
        gray = _gray(images)
        background = _where(kind == SATURATION, gray, tf.zeros_like(gray))
        background = _where(kind == CONTRAST, _mean(gray), background)
        factor = tf.gather(factors, kind, batch_dims=1)
        return _where(active, _blend(images, background, factor), images)

    # The three blends are one formula with three backgrounds, so a turn can be
    # any of them at the price of one. Hue is the dear one: it runs once, the
    # blends that come before it ahead of it and the others behind it.
    for turn in (0, 1, 2):
        images = blend(images, turn, mask & (turn < hue_turn))
    images = _where(mask & (hue != 0), adjust_hue(images, hue), images)
    for turn in (1, 2, 3):
        images = blend(images, turn, mask & (turn > hue_turn))
    return images


def to_grayscale(images):
    """Returns (B, H, W, 3) images with their gray value in all channels."""
    return tf.repeat(_gray(images), 3, axis=-1)


def gaussian_blur(images, sigma, kernel_size):
    """Blurs each image with its own Gaussian; edges are reflected.

    Args:
        images: (B, H, W, C) float32; H and W static, over kernel_size / 2.
        sigma: (B,) float32, standard deviation in pixels, positive.
        kernel_size: odd int, the taps of the kernel.

    Returns:
        (B, H, W, C) float32.
    """
    radius = kernel_size // 2
    distance = tf.range(-radius, radius + 1, dtype=tf.float32)
    kernel = tf.exp(-0.5 * tf.square(distance / sigma[:, None]))
    kernel /= tf.reduce_sum(kernel, axis=1, keepdims=True)
    for axis in (1, 2):
        paddings, begin, extent = [[0, 0]] * 4, [0] * 4, [-1] * 4
        paddings[axis] = [radius, radius]
        extent[axis] = images.shape[axis]
        padded = tf.pad(images, paddings, "REFLECT")
        images = 0.0
        for tap in range(kernel_size):
            begin[axis] = tap
            shifted = tf.slice(padded, begin, extent)
            images += shifted * _per_image(kernel[:, tap])
    return images


def solarize(images, threshold):
    """Inverts the values of (B, H, W, 3) images that reach the threshold."""
    return tf.where(images >= threshold, 1.0 - images, images)


def _check_options(option):
    """Raises ValueError for the first option of `View` out of its range."""
    number = numbers.Integral
    size, kernel = option["size"], option["blur_kernel"]
    area, low_high = option["min_area"], option["blur_sigma"]
    mean, std = option["mean"], option["std"]
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


def _check_images(images):
    shape = tf.TensorShape(images.shape)
    if shape.rank is not None and (shape.rank != 4 or shape[-1] != 3):
        raise ValueError(
            "`images` must be a batch (B, H, W, 3); add a batch dimension to "
            "one image, repeat the channel of gray ones. "
            f"Received: images.shape={shape}"
        )


@keras.utils.register_keras_serializable(package="ressl_tf")
class View(keras_cv.layers.VectorizedBaseImageAugmentationLayer):
    """Random resized crop, flip, colour distortion, normalisation.

    In this order: crop, flip, colour jitter (its four adjustments in an order
    drawn per image), grayscale, blur, solarize, normalise. Every image of a
    batch draws on its own. `flip`, `jitter`, `grayscale`, `blur` and
    `solarize` are probabilities.

    `view.apply(images, seed)` is a function of its arguments. `view(images)`,
    or `view({"images": images, "labels": labels})`, draws a seed from the
    layer's generator, like any keras-cv layer; parallel calls then draw in no
    fixed order.

    Args:
        size: height and width of the view in pixels.
        min_area: smallest crop, as a fraction of the image's area.
        max_area: largest crop, as a fraction of the image's area.
        flip: probability of mirroring left to right.
        brightness: strength b: the factor is uniform in max(0, 1 - b), 1 + b.
        contrast: strength, like brightness.
        saturation: strength, like brightness.
        hue: strength h: the shift is uniform in -h, h, a fraction of a turn.
        jitter: probability of the four adjustments above, together.
        grayscale: probability of dropping the colours.
        blur: probability of a Gaussian blur.
        blur_sigma: (low, high): its standard deviation in pixels, uniform.
        blur_kernel: its taps, an odd number.
        solarize: probability of inverting the bright values.
        solarize_threshold: what is bright, in [0, 1].
        mean: three numbers, subtracted from the channels of [0, 1] images.
        std: three numbers that the channels are then divided by.
        name: of the layer.
        seed: int, of the layer's generator; None draws one from Python's
            `random`, which `keras.utils.set_random_seed` seeds. `apply` and
            `sample` take no notice of it.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        size,
        *,
        min_area=0.2,
        max_area=1.0,
        flip=0.5,
        brightness=0.0,
        contrast=0.0,
        saturation=0.0,
        hue=0.0,
        jitter=0.0,
        grayscale=0.0,
        blur=0.0,
        blur_sigma=(0.1, 2.0),
        blur_kernel=13,
        solarize=0.0,
        solarize_threshold=0.5,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        name=None,
        seed=None,
        **kwargs,
    ):
        options = dict(locals())
        for key in ("self", "name", "kwargs", "__class__"):
            del options[key]
        _check_options(options)
        # Whatever the mixed precision policy, images stay float32. keras-cv
        # takes its generator from a global one if the seed is None or 0, and
        # that one does not exist under op determinism.
        super().__init__(
            name=name,
            seed=random.randrange(1, 2**31) if seed is None else 1,
            **{"dtype": "float32", **kwargs},
        )
        if seed is not None:
            self._random_generator = tf.random.Generator.from_seed(seed)
        self._option_names = tuple(options)
        for key, value in options.items():
            setattr(self, key, tuple(value) if key in _TUPLES else value)

    def sample(self, images, seed, rows=None):
        """Draws what `augment_images` then applies.

        Args:
            images: (B, H, W, 3); only the shape is used.
            seed: (2,) int32 or int64, any values.
            rows: None, or (first, batch_size), two ints: the images are the
                rows from `first` on of a larger batch, and get what these
                rows get where the whole batch is given.

        Returns:
            A dict of tensors with leading dimension B: `box` (B, 4) int32,
            `order` (B, 4) int32, bool masks of the operations, and float32
            parameters of those that have any.
        """
        _check_images(images)
        num_images, height, width, _ = tf.unstack(tf.shape(images))
        first, batch_size = (0, num_images) if rows is None else rows

        def uniform(stream, low, high):
            values = _uniform(seed, stream, [batch_size]) * (high - low) + low
            return tf.cast(values, tf.float32)

        def happens(stream, probability):
            return _uniform(seed, stream, [batch_size]) < probability

        def factor(stream, strength):
            return uniform(stream, max(0.0, 1.0 - strength), 1.0 + strength)

        order = _uniform(seed, "jitter_order", [batch_size]) * len(_ORDERS)
        drawn = {
            "box": sample_crop_boxes(
                seed, batch_size, height, width, self.min_area, self.max_area
            ),
            "flip": happens("flip", self.flip),
            "jitter": happens("jitter", self.jitter),
            "order": tf.gather(_ORDERS, tf.cast(order, tf.int32)),
            "brightness": factor("brightness", self.brightness),
            "contrast": factor("contrast", self.contrast),
            "saturation": factor("saturation", self.saturation),
            "hue": uniform("hue", -self.hue, self.hue),
            "grayscale": happens("grayscale", self.grayscale),
            "blur": happens("blur", self.blur),
            "blur_sigma": uniform("blur_sigma", *self.blur_sigma),
            "solarize": happens("solarize", self.solarize),
        }
        if rows is None:
            return drawn
        return {k: v[first : first + num_images] for k, v in drawn.items()}

    def augment_images(self, images, transformations, **kwargs):
        """Applies what `sample` drew.

        Args:
            images: (B, H, W, 3) in 0-255, any integer or float type.
            transformations: dict, as `sample` returns it.
            **kwargs: what keras-cv passes along (labels, boxes); unused.

        Returns:
            (B, size, size, 3) float32, normalised.
        """
        crops = self._crop(images, transformations)
        return self._distort(crops, transformations)

    def _crop(self, images, drawn):
        _check_images(images)
        images = tf.cast(images, tf.float32) / 255.0
        return resized_crop(images, drawn["box"], self.size, drawn["flip"])

    def _distort(self, images, drawn):
        if self.jitter > 0:
            images = color_jitter(
                images,
                drawn["order"],
                drawn["brightness"],
                drawn["contrast"],
                drawn["saturation"],
                drawn["hue"],
                mask=drawn["jitter"],
            )
        if self.grayscale > 0:
            images = _where(drawn["grayscale"], to_grayscale(images), images)
        if self.blur > 0:
            blurred = gaussian_blur(
                images, drawn["blur_sigma"], self.blur_kernel
            )
            images = _where(drawn["blur"], blurred, images)
        if self.solarize > 0:
            inverted = solarize(images, self.solarize_threshold)
            images = _where(drawn["solarize"], inverted, images)
        return (images - self.mean) / self.std

    def apply(self, images, seed, rows=None):
        """Draws and augments, compiled.

        Args:
            images: (B, H, W, 3) in 0-255, any integer or float type.
            seed: (2,) int32 or int64, any values.
            rows: as in `sample`. The result has the same bits as those rows
                of the whole batch's result, if there are at least two images:
                one alone is compiled to other instructions, and may differ in
                the last bits.

        Returns:
            (B, size, size, 3) float32, normalised: a function of images, seed,
            rows and the layer's options, eagerly and inside `Dataset.map`
            alike.
        """
        # As tensors: a seed of Python numbers would compile once per value.
        images, seed = tf.convert_to_tensor(images), tf.convert_to_tensor(seed)
        crops, drawn = self._compiled_crop(images, seed, rows)
        return self._compiled_distort(crops, drawn)

    # Compiled apart: in one piece XLA computes the crop anew for every place
    # that reads it, which doubles the time.
    @tf.function(jit_compile=True)
    def _compiled_crop(self, images, seed, rows):
        drawn = self.sample(images, seed, rows)
        return self._crop(images, drawn), drawn

    @tf.function(jit_compile=True)
    def _compiled_distort(self, images, drawn):
        return self._distort(images, drawn)

    def get_random_transformation_batch(self, batch_size, images, **kwargs):
        """Draws the parameters of a call that came without a seed."""
        seed = self._random_generator.uniform_full_int([2], dtype=tf.int64)
        return self.sample(images, seed)

    def augment_labels(self, labels, transformations, **kwargs):
        """Returns the labels as they are."""
        return labels

    def get_config(self):
        """Returns the arguments, so that `from_config` builds the same layer.

        The generator's state is not part of them.
        """
        config = {key: getattr(self, key) for key in self._option_names}
        config |= {key: list(config[key]) for key in _TUPLES}
        return {**super().get_config(), **config}


def make_view(size, **options):
    """Returns a `View`; its arguments are `View`'s."""
    return View(size, **options)


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
