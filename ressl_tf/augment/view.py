"""The view layer: random parameters first, then a pure function of them.

`View.sample` is a pure function of an explicit seed, `View.augment_images` a
pure function of what was drawn, and `View.apply`, for input pipelines, is
both, compiled. So a resumed, re-sharded or parallel run sees the same images.
"""

import contextlib
import io
import random

import tensorflow as tf
from tensorflow import keras

from ressl_tf.augment import colors
from ressl_tf.augment import crops
from ressl_tf.augment import randaugment
from ressl_tf.augment.choices import AllAtOnce
from ressl_tf.augment.choices import OneByOne
from ressl_tf.augment.draws import uniform
from ressl_tf.augment.options import TUPLES
from ressl_tf.augment.options import check_options

# Under Keras 2, keras-cv announces its backend on stdout at import.
with contextlib.redirect_stdout(io.StringIO()):
    import keras_cv

# What is drawn for crop and flip; the rest is for `View.distort`.
_PLACE = ("crop", "box", "flip")


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

    In this order: crop, flip, RandAugment (where it stands the paper does not
    say), colour jitter (its four adjustments in an order drawn per image),
    grayscale, blur, solarize, normalise. Every image of a batch draws on its
    own. `flip`, `jitter`, `grayscale`, `blur` and `solarize` are probabilities.

    `view.apply(images, seed)` is a function of its arguments. `view(images)`,
    or `view({"images": images, "labels": labels})`, draws a seed from the
    layer's generator, like any keras-cv layer; parallel calls then draw in no
    fixed order.

    Args:
        size: height and width of the view in pixels.
        min_area: smallest crop, as a fraction of the image's area.
        max_area: largest crop, as a fraction of the image's area.
        flip: probability of mirroring left to right.
        randaugment: number of RandAugment's operations, drawn with
            replacement from its 14 (Cubuk et al. 2020); 0 for none. Always
            computed one image after the other, on an accelerator too.
        randaugment_magnitude: of each operation, an int from 0 to 30.
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
        randaugment=0,
        randaugment_magnitude=10,
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
        check_options(options)
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
            setattr(self, key, tuple(value) if key in TUPLES else value)

    def draw(self, batch_size, seed, rows=None):
        """Draws all that does not depend on the images' size.

        Args:
            batch_size: B, int or scalar tensor.
            seed: (2,) int32 or int64, any values.
            rows: as in `sample`.

        Returns:
            As `sample`, but for `box`: `crop` is what `crops.place_crops`
            makes it of.
        """
        first, total = (0, batch_size) if rows is None else rows

        def value(stream, low, high):
            values = uniform(seed, stream, [total]) * (high - low) + low
            return tf.cast(values, tf.float32)

        def happens(stream, probability):
            return uniform(seed, stream, [total]) < probability

        def factor(stream, strength):
            return value(stream, max(0.0, 1.0 - strength), 1.0 + strength)

        drawn = {
            "crop": crops.draw_crops(seed, total),
            "flip": happens("flip", self.flip),
        }
        if self.jitter > 0:
            order = uniform(seed, "jitter_order", [total]) * len(colors.ORDERS)
            drawn |= {
                "jitter": happens("jitter", self.jitter),
                "order": tf.gather(colors.ORDERS, tf.cast(order, tf.int32)),
                "brightness": factor("brightness", self.brightness),
                "contrast": factor("contrast", self.contrast),
                "saturation": factor("saturation", self.saturation),
                "hue": value("hue", -self.hue, self.hue),
            }
        if self.randaugment > 0:
            drawn |= randaugment.sample(seed, total, self.randaugment)
        if self.grayscale > 0:
            drawn["grayscale"] = happens("grayscale", self.grayscale)
        if self.blur > 0:
            drawn["blur"] = happens("blur", self.blur)
            drawn["blur_sigma"] = value("blur_sigma", *self.blur_sigma)
        if self.solarize > 0:
            drawn["solarize"] = happens("solarize", self.solarize)
        if rows is None:
            return drawn
        own = first + tf.range(batch_size)
        return {name: tf.gather(drawn[name], own) for name in drawn}

    def sample(self, images, seed, rows=None):
        """Draws what `augment_images` then applies.

        Args:
            images: (B, H, W, 3); only the shape is used.
            seed: (2,) int32 or int64, any values.
            rows: None, or (first, batch_size), ints or scalar int32 tensors:
                the images are the rows from `first` on of a larger batch, and
                get what these rows get where the whole batch is given.

        Returns:
            A dict of tensors with leading dimension B: `box` (B, 4) int32,
            `flip` (B,) bool, and of the operations whose probability is not
            0: their (B,) bool masks and float32 parameters; `order` (B, 4)
            int32 goes with `jitter`.
        """
        _check_images(images)
        batch_size, height, width, _ = tf.unstack(tf.shape(images))
        return self.place(self.draw(batch_size, seed, rows), height, width)

    def place(self, drawn, height, width):
        """Turns what `draw` drew into what `sample` returns.

        Args:
            drawn: as `draw` returns it.
            height: of the images, int or scalar tensor.
            width: of the images, int or scalar tensor.

        Returns:
            As `sample`.
        """
        drawn = dict(drawn)
        drawn["box"] = crops.place_crops(
            drawn.pop("crop"), height, width, self.min_area, self.max_area
        )
        return drawn

    def crop_one(self, image, drawn):
        """The crop of one image whose shape the graph need not know.

        Args:
            image: (H, W, 3) in 0-255, any integer or float type.
            drawn: as `draw` returns it for a batch of one.

        Returns:
            (size, size, 3) float32 in 0-255: what `distort` takes.
        """
        drawn = self.place(drawn, *tf.unstack(tf.shape(image))[:2])
        return crops.resized_crop_of_one(
            image, drawn["box"][0], self.size, drawn["flip"][0]
        )

    def distort(self, cropped, drawn, choices=AllAtOnce):
        """What comes after crop and flip: colours, blur, normalisation.

        Args:
            cropped: (B, size, size, 3) in 0-255, any integer or float type.
            drawn: as `sample` returns it; `box` and `flip` are not used.
            choices: how images get their operations: `choices.AllAtOnce`, or
                `choices.OneByOne` where B is 1.

        Returns:
            (B, size, size, 3) float32, normalised.
        """
        images = tf.cast(cropped, tf.float32) * (1.0 / 255.0)
        if self.randaugment > 0:
            images = randaugment.apply(
                images,
                drawn["randaugment_operation"],
                drawn["randaugment_sign"],
                self.randaugment_magnitude,
            )
        planes = colors.to_planes(images)
        if self.jitter > 0:
            planes = choices.when(
                drawn["jitter"],
                lambda planes: colors.color_jitter(
                    planes,
                    drawn["order"],
                    drawn["brightness"],
                    drawn["contrast"],
                    drawn["saturation"],
                    drawn["hue"],
                    choices,
                ),
                planes,
            )
        if self.grayscale > 0:
            planes = choices.when(
                drawn["grayscale"], colors.to_grayscale, planes
            )
        if self.blur > 0:
            planes = choices.when(
                drawn["blur"],
                lambda planes: colors.gaussian_blur(
                    planes, drawn["blur_sigma"], self.blur_kernel
                ),
                planes,
            )
        if self.solarize > 0:
            planes = choices.when(
                drawn["solarize"],
                lambda planes: colors.solarize(planes, self.solarize_threshold),
                planes,
            )
        return (colors.from_planes(planes) - self.mean) / self.std

    # Without AutoGraph, as all here: conversion takes seconds for nothing.
    @tf.function(jit_compile=True, autograph=False)
    def distort_one_by_one(self, cropped, drawn):
        """`distort`, compiled, one image after the other: for CPUs."""
        drawn = {name: drawn[name] for name in drawn if name not in _PLACE}
        if not drawn:
            return self.distort(cropped, drawn)

        def distort_one(row):
            crop, drawn = tf.nest.map_structure(lambda x: x[None], row)
            return self.distort(crop, drawn, OneByOne)[0]

        spec = tf.TensorSpec([self.size, self.size, 3], tf.float32)
        return tf.map_fn(
            distort_one, (cropped, drawn), fn_output_signature=spec
        )

    def augment_images(self, images, transformations, **kwargs):
        """Applies what `sample` drew.

        Args:
            images: (B, H, W, 3) in 0-255, any integer or float type.
            transformations: dict, as `sample` returns it.
            **kwargs: what keras-cv passes along (labels, boxes); unused.

        Returns:
            (B, size, size, 3) float32, normalised.
        """
        return self.distort_one_by_one(
            self._crop(images, transformations), transformations
        )

    def apply(self, images, seed, rows=None):
        """Draws and augments, compiled.

        Args:
            images: (B, H, W, 3) in 0-255, any integer or float type.
            seed: (2,) int32 or int64, any values.
            rows: as in `sample`. The result has the same bits as those rows
                of the whole batch's result.

        Returns:
            (B, size, size, 3) float32, normalised: a function of images, seed,
            rows and the layer's options, eagerly and inside `Dataset.map`
            alike.
        """
        return self.distort_one_by_one(*self.crop(images, seed, rows))

    def crop(self, images, seed, rows=None):
        """The first half of `apply`: draws, crops and flips.

        Args:
            images: as in `apply`.
            seed: as in `apply`.
            rows: as in `apply`.

        Returns:
            (cropped, drawn): (B, size, size, 3) float32 in 0-255, and what was
            drawn.
        """
        # As tensors: a seed of Python numbers would compile once per value.
        images, seed = tf.convert_to_tensor(images), tf.convert_to_tensor(seed)
        if rows is not None:
            rows = tf.convert_to_tensor(rows[0]), rows[1]
        drawn = self._compiled_sample(images, seed, rows)
        return self._crop(images, drawn), drawn

    def pack(self, cropped, drawn):
        """What `finish` takes, small enough to be sent to an accelerator.

        Args:
            cropped: (B, size, size, 3) float32 in 0-255.
            drawn: as `sample` or `draw` returns it.

        Returns:
            A dict of tensors with leading dimension B: `crop`, the images
            rounded to uint8, a quarter of the bytes, and what was drawn for
            `distort`.
        """
        drawn = {name: drawn[name] for name in drawn if name not in _PLACE}
        return {"crop": tf.saturate_cast(tf.round(cropped), tf.uint8), **drawn}

    @tf.function(jit_compile=True, autograph=False)
    def finish(self, packed):
        """The second half of a view, for accelerators: compiled, all at once.

        Args:
            packed: as `pack` returns it.

        Returns:
            (B, size, size, 3) float32, normalised: as `apply`, but for the
            rounding of the crops, half a level of 255 at most.
        """
        return self.distort(packed["crop"], packed)

    def _crop(self, images, drawn):
        _check_images(images)
        strips = self._compiled_rows(images, drawn["box"])
        return self._compiled_columns(strips, drawn["box"], drawn["flip"])

    @tf.function(jit_compile=True, autograph=False)
    def _compiled_sample(self, images, seed, rows):
        return self.sample(images, seed, rows)

    @tf.function(jit_compile=True, autograph=False)
    def _compiled_rows(self, images, boxes):
        return crops.resize_rows(images, boxes, self.size)

    @tf.function(jit_compile=True, autograph=False)
    def _compiled_columns(self, strips, boxes, flip):
        return crops.resize_columns(strips, boxes, self.size, flip)

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
        config |= {key: list(config[key]) for key in TUPLES}
        return {**super().get_config(), **config}
