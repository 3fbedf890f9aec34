"""Views: each operation, the draws, the layer."""

import itertools
import math
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from ressl_tf import augment
from ressl_tf.augment import colors
from ressl_tf.augment import crops
from ressl_tf.augment import randaugment
from ressl_tf.augment.choices import AllAtOnce
from ressl_tf.augment.choices import OneByOne

DATA = pathlib.Path(__file__).parent / "data"
OPERATIONS = np.load(DATA / "torchvision_ops.npz")
CROPS = np.load(DATA / "random_resized_crop.npz")
PIXELS = OPERATIONS["images_uint8"]
IMAGES = tf.constant(PIXELS / np.float32(255))
PROBABILITIES = ("flip", "jitter", "grayscale", "blur", "solarize")
NO_CHANGE = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
# One layer for many tests: each new one compiles anew.
STRONG = augment.strong_view(32, solarize=0.5)


def full(value, dtype=np.float32):
    return tf.fill([len(PIXELS)], tf.cast(value, dtype))


def on_images(operation):
    """An operation on planes, for images (B, H, W, 3)."""

    def run(images, *parameters):
        planes = operation(colors.to_planes(images), *parameters)
        return colors.from_planes(planes)

    return run


def random_pixels(batch_size, height=32, width=32, seed=0):
    shape = (batch_size, height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def drawn(view, images, **changes):
    """What the view samples, with some of it fixed."""
    values = view.sample(images, tf.constant([1, 2]))
    for name, value in changes.items():
        shape = tf.shape(values[name])
        values[name] = tf.broadcast_to(
            tf.cast(value, values[name].dtype), shape
        )
    return values


@pytest.mark.core
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "name, tolerance",
    [
        ("brightness", 2e-6),
        ("contrast", 2e-6),
        ("saturation", 2e-6),
        ("hue", 1e-5),
    ],
)
def test_adjustment_matches_torchvision(name, tolerance, compiled):
    adjust = on_images(getattr(colors, f"adjust_{name}"))
    adjust = tf.function(adjust, jit_compile=True) if compiled else adjust
    factors = OPERATIONS[f"{name}_factors"]
    for factor, expected in zip(factors, OPERATIONS[name], strict=True):
        result = adjust(IMAGES, full(factor))
        np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance)


def test_factors_are_per_image():
    factors = tf.constant(np.resize(OPERATIONS["contrast_factors"], 6))
    result = on_images(colors.adjust_contrast)(IMAGES, factors)
    for i in range(6):
        expected = OPERATIONS["contrast"][i % 3, i]
        np.testing.assert_allclose(result[i], expected, rtol=0, atol=2e-6)


def test_gray_images_have_no_hue_to_turn():
    gray = on_images(colors.to_grayscale)(IMAGES)
    result = on_images(colors.adjust_hue)(gray, full(0.3))
    np.testing.assert_array_equal(result, gray)


def test_hue_by_hand():
    # A third of a turn takes red to green, green to blue, blue to red.
    image = tf.constant([[[[1.0, 0, 0], [0, 0.5, 0], [0, 0, 0.25]]]])
    result = on_images(colors.adjust_hue)(image, tf.constant([1 / 3]))
    expected = [[[[0, 1.0, 0], [0, 0, 0.5], [0.25, 0, 0]]]]
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_blends_by_hand():
    image = tf.constant([[[[0.8, 0.4, 0.2], [0.0, 0.0, 0.0]]]])
    gray = 0.2989 * 0.8 + 0.587 * 0.4 + 0.114 * 0.2
    half, double = tf.constant([0.5]), tf.constant([2.0])
    np.testing.assert_allclose(
        on_images(colors.adjust_brightness)(image, double)[0, 0],
        [[1.0, 0.8, 0.4], [0, 0, 0]],
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        on_images(colors.adjust_contrast)(image, half)[0, 0],
        np.array([[0.4, 0.2, 0.1], [0, 0, 0]]) + gray / 4,
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        on_images(colors.adjust_saturation)(image, half)[0, 0],
        [[0.4 + gray / 2, 0.2 + gray / 2, 0.1 + gray / 2], [0, 0, 0]],
        rtol=1e-6,
    )


def test_grayscale_matches_torchvision():
    result = on_images(colors.to_grayscale)(IMAGES)
    assert result.shape == IMAGES.shape
    expected = np.broadcast_to(OPERATIONS["grayscale"], result.shape)
    np.testing.assert_allclose(result, expected, rtol=0, atol=2e-6)


def test_solarize_matches_torchvision():
    result = colors.solarize(IMAGES, 0.5)
    expected = OPERATIONS["solarize_0.5"]
    np.testing.assert_allclose(result, expected, rtol=0, atol=2e-6)


def test_solarize_threshold_from_both_sides():
    below, at, above = np.nextafter(np.float32(0.5), 0), 0.5, 0.75
    image = tf.reshape(
        tf.constant([below, at, above], tf.float32), [1, 1, 1, 3]
    )
    result = colors.solarize(image, 0.5)[0, 0, 0]
    np.testing.assert_array_equal(result, np.float32([below, 0.5, 0.25]))


@pytest.mark.core
@pytest.mark.parametrize("kernel_size", [3, 13])
def test_blur_matches_torchvision(kernel_size):
    expected = OPERATIONS[f"blur_k{kernel_size}"]
    for sigma, blurred in zip(OPERATIONS["blur_sigmas"], expected, strict=True):
        result = on_images(colors.gaussian_blur)(
            IMAGES, full(sigma), kernel_size
        )
        np.testing.assert_allclose(result, blurred, rtol=0, atol=2e-6)


def test_blur_by_hand_on_an_image_that_is_not_square():
    image = np.zeros((1, 3, 4, 1), np.float32)
    image[0, 1, 0] = 1.0
    side = math.exp(-0.5)
    kernel = np.array([side, 1, side]) / (1 + 2 * side)
    # Reflection: beside column 0 lies column 1, above row 0 row 1 once more.
    rows = np.array([2 * kernel[0], kernel[1], 2 * kernel[0]])
    columns = np.array([kernel[1], kernel[0], 0, 0])
    result = on_images(colors.gaussian_blur)(image, tf.constant([1.0]), 3)
    expected = rows[:, None] * columns
    np.testing.assert_allclose(result[0, :, :, 0], expected, rtol=1e-6)


@pytest.mark.core
def test_jitter_orders_match_torchvision():
    orders = OPERATIONS["jitter_orders"]
    factors = OPERATIONS["jitter_factors"]
    for index in range(len(orders)):
        result = on_images(colors.color_jitter)(
            IMAGES,
            tf.tile(orders[index : index + 1], [6, 1]),
            *(full(factor) for factor in factors[index]),
            AllAtOnce,
        )
        expected = OPERATIONS["jitter"][index]
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5)


def test_every_jitter_order_equals_the_single_adjustments():
    orders = list(itertools.permutations(range(4)))
    images = tf.repeat(IMAGES[:1], len(orders), axis=0)
    factors = [tf.fill([len(orders)], f) for f in (1.3, 1.4, 1.2, 0.08)]
    result = on_images(colors.color_jitter)(
        images, tf.constant(orders), *factors, AllAtOnce
    )
    names = ("brightness", "contrast", "saturation", "hue")
    for index, order in enumerate(orders):
        expected = IMAGES[:1]
        for kind in order:
            adjust = on_images(getattr(colors, f"adjust_{names[kind]}"))
            expected = adjust(expected, factors[kind][:1])
        np.testing.assert_allclose(result[index], expected[0], atol=1e-6)


def test_masked_images_keep_their_bits():
    mask = tf.constant([True, False] * 3)
    planes = colors.to_planes(IMAGES)
    result = AllAtOnce.when(mask, lambda planes: 1 - planes, planes)
    np.testing.assert_array_equal(result[1::2], planes[1::2])
    np.testing.assert_array_equal(result[::2], 1 - planes[::2])
    for index in range(2):
        one = planes[index : index + 1]
        alone = OneByOne.when(
            mask[index : index + 1], lambda planes: 1 - planes, one
        )
        np.testing.assert_array_equal(alone, result[index : index + 1])


def test_one_by_one_equals_all_at_once():
    view = augment.strong_view(32, solarize=0.5, seed=0)
    images = random_pixels(64, seed=4)
    cropped, values = view.crop(images, tf.constant([3, 4]))
    expected = tf.function(view.distort, jit_compile=True)(cropped, values)
    result = view.distort_one_by_one(cropped, values)
    # Divided by std, of [0, 1]. A hue at the edge of two sixths of a turn
    # comes out the same by either formula.
    np.testing.assert_allclose(result, expected, rtol=0, atol=5e-5)


@pytest.mark.core
@pytest.mark.parametrize("size", [32, 24])
def test_resized_crop_matches_torchvision(size):
    expected = OPERATIONS[f"resized_crop_{size}"]
    for box, crop in zip(OPERATIONS["crop_boxes"], expected, strict=True):
        boxes = tf.tile(box[None], [6, 1])
        result = crops.resized_crop(IMAGES, boxes, size)
        np.testing.assert_allclose(result, crop, rtol=0, atol=2e-6)
        flip = tf.constant([True, False] * 3)
        result = crops.resized_crop(IMAGES, boxes, size, flip)
        mirrored = crop[::2, :, ::-1]
        np.testing.assert_allclose(result[::2], mirrored, rtol=0, atol=2e-6)
        np.testing.assert_allclose(result[1::2], crop[1::2], rtol=0, atol=2e-6)


def test_resized_crop_by_hand_stays_inside_the_box():
    row = tf.constant([9.0, 0.0, 1.0, 9.0])
    image = tf.reshape(row, [1, 1, 4, 1])
    result = crops.resized_crop(image, tf.constant([[0, 1, 1, 2]]), 4)
    for values in result[0, :, :, 0]:
        np.testing.assert_array_equal(values, [0.0, 0.25, 0.75, 1.0])


@pytest.mark.core
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [8, 24, 64])
def test_crop_of_one_equals_crop_of_a_batch(size, flip):
    # Crops that are enlarged and that are shrunk.
    image = random_pixels(1, 45, 37, seed=size)
    boxes = [(0, 0, 45, 37), (3, 2, 7, 20), (40, 30, 5, 7), (44, 36, 1, 1)]
    for box in boxes:
        expected = crops.resized_crop(
            image, tf.constant([box]), size, tf.constant([flip])
        )
        result = crops.resized_crop_of_one(
            tf.constant(image[0]), tf.constant(box), size, tf.constant(flip)
        )
        # 4e-6 of the range of values.
        np.testing.assert_allclose(result, expected[0], rtol=0, atol=1e-3)


@pytest.mark.core
def test_crop_one_cuts_what_a_batch_would_get():
    view = augment.strong_view(16)
    images = random_pixels(6, 30, 40)
    seed = tf.constant([5, 6], tf.int64)
    expected, values = view.crop(images, seed)
    drawn = view.draw(6, seed)
    for row in range(6):
        own = {name: value[row : row + 1] for name, value in drawn.items()}
        result = view.crop_one(tf.constant(images[row]), own)
        np.testing.assert_allclose(result, expected[row], rtol=0, atol=1e-4)
    assert set(values) - {"box"} == set(drawn) - {"crop"}


@pytest.mark.parametrize("name", [k for k in CROPS if k.endswith("/area")])
def test_crop_boxes_are_distributed_as_torchvisions(name):
    case = name.split("/")[0]
    size, area = case.split("_")
    height, width = (int(extent) for extent in size.split("x"))
    low, high = (float(fraction) for fraction in area.split("-"))
    draws = crops.draw_crops(tf.constant([3, 4]), 40_000)
    boxes = crops.place_crops(draws, height, width, low, high)
    top, left, box_height, box_width = np.asarray(boxes, np.float64).T
    assert top.min() >= 0 and (top + box_height).max() <= height
    assert left.min() >= 0 and (left + box_width).max() <= width
    own = {
        "area": box_height * box_width / (height * width),
        "log_aspect": np.log(box_width / box_height),
        "center_y": (top + box_height / 2) / height,
        "center_x": (left + box_width / 2) / width,
    }
    # 0.0125 is 3.5 standard errors of the difference of two empirical
    # distributions of 40,000 at the median. Values are few at 32 pixels, so a
    # quantile has to lie between "less than" and "at most" the value.
    for quantity, values in own.items():
        values = np.sort(values)
        reference = CROPS[f"{case}/{quantity}"].astype(np.float64)
        below = np.searchsorted(values, reference - 1e-6) / len(values)
        at_most = np.searchsorted(values, reference + 1e-6) / len(values)
        assert (below - 0.0125 <= CROPS["quantiles"]).all(), quantity
        assert (CROPS["quantiles"] <= at_most + 0.0125).all(), quantity


@pytest.mark.parametrize(
    "height, width, expected",
    [
        (100, 4, (47, 0, 5, 4)),
        (4, 100, (0, 47, 4, 5)),
        (12, 12, (0, 0, 12, 12)),
    ],
)
def test_crop_falls_back_to_the_centre(height, width, expected):
    # The whole area of a square fits only if the aspect rounds to 1.
    draws = crops.draw_crops(tf.constant([0, 0]), 64)
    boxes = crops.place_crops(draws, height, width, 1.0, 1.0)
    matches = (np.asarray(boxes) == expected).all(axis=1)
    assert matches.all()


@pytest.mark.parametrize("name", PROBABILITIES)
@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_probabilities(name, probability):
    view = augment.make_view(8, blur_kernel=3, **{name: probability})
    images = tf.zeros([4000, 8, 8, 3])
    values = view.sample(images, tf.constant([5, 6]))
    if name != "flip" and not probability:
        assert name not in values  # not even drawn
        return
    fraction = np.mean(values[name])
    error = math.sqrt(probability * (1 - probability) / 4000)
    assert abs(fraction - probability) <= 4 * error


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_strong_view_at_the_ends(probability):
    # 0 changes nothing, 1 changes every image.
    names = ("flip", "jitter", "grayscale", "blur", "solarize")
    options = {name: probability for name in names}
    view = augment.strong_view(32, **options, **NO_CHANGE)
    full_box = drawn(view, PIXELS, box=(0, 0, 32, 32))
    result = view.augment_images(PIXELS, full_box)
    changed = np.abs(result - IMAGES).max(axis=(1, 2, 3)) > 1e-6
    assert (changed == bool(probability)).all()


def test_ranges_of_the_parameters():
    view = augment.strong_view(32, brightness=1.5, hue=0.1)
    images = tf.zeros([4000, 32, 32, 3])
    values = view.sample(images, tf.constant([8, 9]))
    ranges = {
        "brightness": (0.0, 2.5),
        "contrast": (0.6, 1.4),
        "saturation": (0.6, 1.4),
        "hue": (-0.1, 0.1),
        "blur_sigma": (0.1, 2.0),
    }
    draws = []
    for name, (low, high) in ranges.items():
        value = np.asarray(values[name])
        assert value.min() >= np.float32(low) and value.max() <= high + 1e-6
        width = high - low
        assert abs(value.mean() - (low + high) / 2) < width * 4 / 219
        assert value.min() < low + width / 100
        assert value.max() > high - width / 100
        draws.append((value - low) / width)
    correlation = np.corrcoef(draws) - np.eye(len(draws))
    assert np.abs(correlation).max() < 0.08
    orders, counts = np.unique(values["order"], axis=0, return_counts=True)
    assert len(orders) == 24
    assert np.abs(counts - 4000 / 24).max() < 5 * math.sqrt(4000 / 24)


def test_operations_come_in_order():
    # Crop, jitter, grayscale, blur, solarize, each by its own function.
    view = augment.strong_view(32, solarize=0.5, **NO_CHANGE)
    masks = {name: True for name in PROBABILITIES}
    values = drawn(view, PIXELS, **masks)
    expected = crops.resized_crop(IMAGES, values["box"], 32, values["flip"])
    names = ("order", "brightness", "contrast", "saturation", "hue")
    expected = on_images(colors.color_jitter)(
        expected, *(values[n] for n in names), AllAtOnce
    )
    expected = on_images(colors.to_grayscale)(expected)
    expected = on_images(colors.gaussian_blur)(
        expected, values["blur_sigma"], 13
    )
    expected = colors.solarize(expected, 0.5)
    result = view.augment_images(PIXELS, values)
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_randaugment_comes_first():
    view = augment.make_view(
        32, randaugment=2, randaugment_magnitude=17, grayscale=1.0, **NO_CHANGE
    )
    values = drawn(view, PIXELS, box=(0, 0, 32, 32), flip=False)
    expected = randaugment.apply(
        IMAGES,
        values["randaugment_operation"],
        values["randaugment_sign"],
        17,
    )
    assert np.abs(expected - IMAGES).max() > 0.5
    expected = on_images(colors.to_grayscale)(expected)
    result = view.augment_images(PIXELS, values)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)


def test_weak_view_of_the_whole_image_only_normalises():
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    view = augment.weak_view(32, mean=mean, std=std)
    values = drawn(view, PIXELS, box=(0, 0, 32, 32), flip=False)
    result = view.augment_images(PIXELS, values)
    expected = (PIXELS / np.float32(255) - np.float32(mean)) / np.float32(std)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)


def test_default_normalisation():
    view = augment.weak_view(4)
    white = view.apply(np.full((1, 8, 8, 3), 255, np.uint8), (0, 0))
    expected = [0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225]
    np.testing.assert_allclose(white[0, 0, 0], expected, rtol=1e-5)


@pytest.mark.core
def test_compiled_draws_equal_eager_ones():
    images = tf.zeros([300, 32, 32, 3])
    compiled_sample = tf.function(STRONG.sample, jit_compile=True)
    for seed in ((0, 0), (5, -7), (2**40, -(2**50)), (2**31 - 1, 3)):
        seed = tf.constant(seed, tf.int64)
        eager = STRONG.sample(images, seed)
        compiled = compiled_sample(images, seed)
        assert set(eager) == set(compiled)
        for name in eager:
            np.testing.assert_array_equal(eager[name], compiled[name], name)


def test_seeds_of_either_integer_type_draw_the_same():
    view = augment.strong_view(32)
    short = view.sample(PIXELS, tf.constant([5, -7], tf.int32))
    long = view.sample(PIXELS, tf.constant([5, -7], tf.int64))
    for name in short:
        np.testing.assert_array_equal(short[name], long[name], name)


@pytest.mark.core
def test_apply_equals_eager_sample_and_augment():
    view = augment.strong_view(24)
    images = random_pixels(48, 40, 36)
    seed = tf.constant([11, 12])
    result = view.apply(images, seed)
    assert result.shape == (48, 24, 24, 3)
    assert result.dtype == tf.float32
    expected = view.augment_images(images, view.sample(images, seed))
    # 1e-5 of the range of values, before the division by std.
    np.testing.assert_allclose(result, expected, rtol=0, atol=5e-5)


@pytest.mark.core
@pytest.mark.parametrize("num_parts", [2, 6])
def test_rows_of_a_batch_are_augmented_as_in_the_batch(num_parts):
    view = augment.strong_view(32, solarize=0.5)
    images, seed = random_pixels(12, 40, 33), (3, 4)
    whole = view.apply(images, seed).numpy()
    rows = 12 // num_parts
    for first in range(0, 12, rows):
        part = images[first : first + rows]
        found = view.apply(part, seed, rows=(first, 12)).numpy()
        np.testing.assert_array_equal(found, whole[first : first + rows])
        if first:  # Other rows draw otherwise.
            assert not np.array_equal(view.apply(part, seed), found)


def test_apply_is_a_function_of_the_seed():
    first = STRONG.apply(PIXELS, (0, 0)).numpy()
    np.testing.assert_array_equal(first, STRONG.apply(PIXELS, (0, 0)))
    other_layer = augment.strong_view(32, solarize=0.5)
    again = other_layer.apply(PIXELS, tf.constant([0, 0], tf.int64))
    np.testing.assert_array_equal(first, again)
    for other in ((0, 1), (1, 0), (-1, 0)):
        assert np.abs(first - STRONG.apply(PIXELS, other)).max() > 0.1


def test_images_of_a_batch_draw_on_their_own():
    twins = np.repeat(PIXELS[:1], len(PIXELS), axis=0)
    results = STRONG.apply(twins, (1, 2)).numpy()
    for one, two in itertools.combinations(results, 2):
        assert np.abs(one - two).max() > 0.1


@pytest.mark.core
@pytest.mark.parametrize("parallel_calls", [1, 4])
def test_dataset_map_equals_eager(parallel_calls):
    images = random_pixels(48).reshape(8, 6, 32, 32, 3)
    dataset = tf.data.Dataset.from_tensor_slices(images).enumerate()
    dataset = dataset.map(
        lambda step, batch: STRONG.apply(batch, tf.stack([step, 3])),
        num_parallel_calls=parallel_calls,
    )
    for step, result in enumerate(dataset):
        seed = tf.constant([step, 3], tf.int64)
        np.testing.assert_array_equal(result, STRONG.apply(images[step], seed))


def test_batches_of_unknown_size():
    view = augment.weak_view(16)
    images = random_pixels(10)
    dataset = tf.data.Dataset.from_tensor_slices(images).batch(8)
    dataset = dataset.map(lambda batch: view.apply(batch, (1, 2)))
    results = list(dataset)
    assert [result.shape[0] for result in results] == [8, 2]
    np.testing.assert_array_equal(results[1], view.apply(images[8:], (1, 2)))


def test_unsigned_and_float_images_give_the_same():
    as_float = STRONG.apply(PIXELS.astype(np.float32), (1, 2))
    np.testing.assert_array_equal(STRONG.apply(PIXELS, (1, 2)), as_float)


@pytest.mark.core
def test_layer_call_draws_anew_and_passes_labels():
    view = augment.strong_view(24, seed=3)
    inputs = {"images": PIXELS, "labels": np.arange(6.0)}
    first, second = view(inputs), view(inputs)
    assert first["images"].shape == (6, 24, 24, 3)
    np.testing.assert_array_equal(first["labels"], np.arange(6))
    assert np.abs(first["images"] - second["images"]).max() > 0.1
    same_seed = augment.strong_view(24, seed=3)(PIXELS)
    np.testing.assert_array_equal(first["images"], same_seed)
    assert view(PIXELS[0]).shape == (24, 24, 3)
    dataset = tf.data.Dataset.from_tensors(inputs).map(view)
    assert next(iter(dataset))["images"].shape == (6, 24, 24, 3)


def test_layer_call_ignores_the_precision_policy():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        assert augment.weak_view(24)(PIXELS).dtype == tf.float32
    finally:
        keras.mixed_precision.set_global_policy("float32")


def test_config_round_trip():
    view = augment.strong_view(24, blur_sigma=(0.5, 1.5), seed=3, name="view")
    config = view.get_config()
    copy = augment.View.from_config(config)
    assert copy.get_config() == config
    assert copy.blur_sigma == (0.5, 1.5)
    seed = tf.constant([4, 5])
    one, two = view.sample(PIXELS, seed), copy.sample(PIXELS, seed)
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], name)
    restored = keras.layers.deserialize(keras.layers.serialize(view))
    assert isinstance(restored, augment.View)
    assert restored.get_config() == config


@pytest.mark.parametrize(
    "options, message",
    [
        ({"size": 0}, "`size` must be a number of pixels.*size=0"),
        ({"size": (32, 32)}, r"square.*Received: size=\(32, 32\)"),
        ({"min_area": 0.0}, r"in \(0, 1\].*min_area=0.0"),
        ({"min_area": 0.6, "max_area": 0.5}, "`min_area` <=.*max_area=0.5"),
        ({"max_area": 1.5}, "`max_area` must be a fraction.*max_area=1.5"),
        ({"flip": 50}, "`flip` must be a probability.*flip=50"),
        ({"jitter": -0.1}, "`jitter` must be a probability.*jitter=-0.1"),
        ({"grayscale": 2}, "`grayscale` must be a probability"),
        ({"blur": 1.1}, "`blur` must be a probability"),
        ({"solarize": 1.1}, "`solarize` must be a probability"),
        ({"brightness": -1}, "`brightness` must be a strength.*ness=-1"),
        ({"contrast": -1}, "`contrast` must be a strength"),
        ({"saturation": -1}, "`saturation` must be a strength"),
        ({"hue": 36}, "divide degrees by 360.*Received: hue=36"),
        ({"blur_sigma": (2.0, 0.1)}, r"low <= high.*\(2.0, 0.1\)"),
        ({"blur_sigma": (1.0,)}, "a pair"),
        ({"blur_kernel": 4}, "odd number of taps.*blur_kernel=4"),
        ({"blur_kernel": 65, "blur": 0.5}, "below twice .* 32, .*=65"),
        ({"solarize_threshold": 128}, "by 255.*solarize_threshold=128"),
        ({"mean": (125.0, 120.0, 110.0)}, "`mean`.*divide by 255"),
        ({"mean": (0.5,)}, "`mean` must be three numbers"),
        ({"std": (0.2, 0.0, 0.2)}, r"`std`.*Received: std=\(0.2, 0.0, 0.2\)"),
        ({"randaugment": -1}, "`randaugment` must be.*randaugment=-1"),
        ({"randaugment": 0.5}, "`randaugment` must be.*randaugment=0.5"),
        ({"randaugment_magnitude": 31}, "from 0 to 30.*magnitude=31"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        augment.make_view(**{"size": 32, **options})


def test_unknown_arguments_are_refused():
    with pytest.raises((TypeError, ValueError), match="jiter"):
        augment.strong_view(32, jiter=0.5)


@pytest.mark.parametrize("shape", [(32, 32, 3), (2, 32, 32, 1)])
def test_images_of_the_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match="Received: images.shape="):
        augment.weak_view(24).apply(np.zeros(shape, np.uint8), (0, 0))


def test_crops_are_views_of_the_same_settings():
    views = augment.make_views(24, crops=2, min_area=0.3)
    assert [view.get_config()["min_area"] for view in views] == [0.3, 0.3]
    assert [view.size for view in views] == [24, 24]
    assert len(augment.make_views(24)) == 1


def test_sizes_have_their_own_areas():
    views = augment.make_views(
        (24, 16, 8),
        min_area=(0.14, 0.1, 0.05),
        max_area=0.9,
        blur=0.5,
        blur_kernel=(7, 5, 3),
        blur_sigma=(0.1, 2.0),
    )
    found = [
        (v.size, v.min_area, v.max_area, v.blur_kernel, v.blur_sigma)
        for v in views
    ]
    assert found == [
        (24, 0.14, 0.9, 7, (0.1, 2.0)),
        (16, 0.1, 0.9, 5, (0.1, 2.0)),
        (8, 0.05, 0.9, 3, (0.1, 2.0)),
    ]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"size": 8, "crops": 0}, "`crops`.*at least 1.*crops=0"),
        ({"size": 8, "crops": 1.5}, "`crops`.*crops=1.5"),
        ({"size": (8, 8), "crops": 2}, r"`crops`.*size=\(8, 8\)"),
        (
            {"size": (8, 8), "min_area": (0.1, 0.2, 0.3)},
            r"`min_area`.*2 sizes.*min_area=\(0.1, 0.2, 0.3\)",
        ),
        ({"size": (8, 0)}, "`size`.*size=0"),
    ],
)
def test_views_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        augment.make_views(**options)
