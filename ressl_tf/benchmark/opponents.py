"""The views of others: stock keras-cv layers, and PIL as torchvision has it.

Each is made from a `View`, whose options it takes over, so that all draw
crops of the same areas and blur with the same probabilities.
"""

import math

import numpy as np
import tensorflow as tf

_ASPECTS = (3 / 4, 4 / 3)


def keras_cv_chain(view):
    """What a user of keras-cv writes: its layers, one after the other.

    Its colour jitter has a fixed order and blends of its own, its crop looks
    outside the image where a draw does not fit, and its blur pads with zeros;
    random numbers come from stateful generators.

    Args:
        view: `augment.View`.

    Returns:
        A function from uint8 or float images in 0-255, (H, W, 3) or
        (B, H, W, 3), to normalised float32 views.
    """
    import keras_cv

    option = view.get_config()
    size, kernel = option["size"], option["blur_kernel"]

    def apply(layer, rate):
        return keras_cv.layers.RandomApply(layer, rate)

    crop = keras_cv.layers.RandomCropAndResize(
        target_size=(size, size),
        crop_area_factor=(option["min_area"], option["max_area"]),
        aspect_ratio_factor=_ASPECTS,
    )
    # The faster of its two ways: TensorFlow cannot vectorise its operations,
    # and warns of each.
    crop.auto_vectorize = False
    layers = [crop]
    if option["flip"]:
        layers.append(keras_cv.layers.RandomFlip("horizontal", option["flip"]))
    if option["jitter"]:
        # A saturation of 0.5 is theirs for no change.
        saturation = option["saturation"] / 2
        jitter = keras_cv.layers.RandomColorJitter(
            value_range=(0, 255),
            brightness_factor=option["brightness"],
            contrast_factor=option["contrast"],
            saturation_factor=(0.5 - saturation, 0.5 + saturation),
            hue_factor=option["hue"],
        )
        layers.append(apply(jitter, option["jitter"]))
    if option["grayscale"]:
        gray = keras_cv.layers.Grayscale(output_channels=3)
        layers.append(apply(gray, option["grayscale"]))
    if option["blur"]:
        blur = keras_cv.layers.RandomGaussianBlur(
            kernel, tuple(option["blur_sigma"])
        )
        layers.append(apply(blur, option["blur"]))
    if option["solarize"]:
        threshold = 255 * option["solarize_threshold"]
        solarize = keras_cv.layers.Solarization(
            (0, 255), threshold_factor=(threshold, threshold)
        )
        layers.append(apply(solarize, option["solarize"]))
    mean, std = option["mean"], option["std"]

    def chain(images):
        images = tf.cast(images, tf.float32)
        for layer in layers:
            images = layer(images, training=True)
        return (images / 255.0 - mean) / std

    return chain


def pil_chain(view):
    """What a user of torchvision has in its data set: PIL, image by image.

    Args:
        view: `augment.View`.

    Returns:
        A function from a uint8 (H, W, 3) array and a NumPy generator to a
        normalised float32 (size, size, 3) array.
    """
    from PIL import Image
    from PIL import ImageFilter
    from PIL import ImageOps

    option = view.get_config()
    size = option["size"]
    mean = np.array(option["mean"], np.float32)
    std = np.array(option["std"], np.float32)
    adjustments = _pil_adjustments(option)

    def chain(pixels, generator):
        def happens(name):
            return generator.random() < option[name]

        box = _crop_box(pixels.shape[:2], option, generator)
        image = Image.fromarray(pixels).crop(box)
        image = image.resize((size, size), Image.Resampling.BILINEAR)
        if happens("flip"):
            image = ImageOps.mirror(image)
        if happens("jitter"):
            for number in generator.permutation(len(adjustments)):
                image = adjustments[number](image, generator)
        if happens("grayscale"):
            image = image.convert("L").convert("RGB")
        if happens("blur"):
            sigma = generator.uniform(*option["blur_sigma"])
            image = image.filter(ImageFilter.GaussianBlur(sigma))
        if happens("solarize"):
            threshold = math.ceil(255 * option["solarize_threshold"])
            image = ImageOps.solarize(image, threshold)
        return (np.asarray(image, np.float32) / 255.0 - mean) / std

    return chain


def _pil_adjustments(option):
    """Brightness, contrast, saturation and hue, those that change anything."""
    from PIL import Image
    from PIL import ImageEnhance

    def blend(enhancer, strength):
        def adjust(image, generator):
            factor = generator.uniform(max(0.0, 1 - strength), 1 + strength)
            return enhancer(image).enhance(factor)

        return adjust

    def turn_hue(image, generator):
        shift = round(255 * generator.uniform(-option["hue"], option["hue"]))
        hue, saturation, value = image.convert("HSV").split()
        turned = np.asarray(hue) + np.uint8(shift % 256)  # wraps around
        hue = Image.fromarray(turned)
        return Image.merge("HSV", (hue, saturation, value)).convert("RGB")

    adjustments = {
        "brightness": blend(ImageEnhance.Brightness, option["brightness"]),
        "contrast": blend(ImageEnhance.Contrast, option["contrast"]),
        "saturation": blend(ImageEnhance.Color, option["saturation"]),
        "hue": turn_hue,
    }
    return [adjust for name, adjust in adjustments.items() if option[name]]


def _crop_box(shape, option, generator):
    """Left, top, right, bottom of a random resized crop, 10 tries."""
    height, width = shape
    low, high = (math.log(aspect) for aspect in _ASPECTS)
    for _ in range(10):
        area = generator.uniform(option["min_area"], option["max_area"])
        area *= height * width
        aspect = math.exp(generator.uniform(low, high))
        wide = round(math.sqrt(area * aspect))
        tall = round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            left = int(generator.integers(width - wide + 1))
            top = int(generator.integers(height - tall + 1))
            return left, top, left + wide, top + tall
    wide = min(width, round(height * _ASPECTS[1]))
    tall = min(height, round(width / _ASPECTS[0]))
    left, top = (width - wide) // 2, (height - tall) // 2
    return left, top, left + wide, top + tall
