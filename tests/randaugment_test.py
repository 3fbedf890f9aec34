"""RandAugment: the draws, and the operations beside torchvision's.

randaugment.npz holds what torchvision's RandAugment operations make of uint8
tensors. `square_10`: row i is operation `square_rows[i, 1]` with the sign
`square_rows[i, 2]` at magnitude 10 on image `square_rows[i, 0]` of `square`;
`square_27` the same at 27, `wide_10` on `wide`. `chains`: row i is five
operations on `square[i % 2]`. `odd_*`: operation and magnitude on `odd[0]`,
with positions exactly between two pixels.
"""

import pathlib

import numpy as np
import pytest
import tensorflow as tf

from ressl_tf.augment import randaugment

DATA = pathlib.Path(__file__).parent / "data"
TORCHVISION = np.load(DATA / "randaugment.npz")
OPERATIONS = randaugment.OPERATIONS
COMPILED = tf.function(randaugment.apply, jit_compile=True)
PLAIN = tf.function(randaugment.apply)


def to_images(levels):
    return tf.constant(levels / np.float32(255))


def to_levels(images):
    """Levels of images, which must be multiples of 1/255 to the bit."""
    levels = np.round(np.asarray(images) * 255).astype(np.uint8)
    np.testing.assert_array_equal(images, to_images(levels))
    return levels


def single_operations(name, magnitude):
    """Images, operations, signs and expected levels; four slots are idle."""
    source, operation, sign = TORCHVISION[f"{name}_rows"].T
    operations = np.zeros((len(source), 5), np.int32)
    operations[:, 2] = operation
    signs = np.repeat(sign[:, None], 5, axis=1).astype(np.float32)
    expected = TORCHVISION[f"{name}_{magnitude}"]
    return to_images(TORCHVISION[name][source]), operations, signs, expected


def chains():
    operations = TORCHVISION["chain_operations"].astype(np.int32)
    signs = TORCHVISION["chain_signs"].astype(np.float32)
    images = to_images(TORCHVISION["square"][np.arange(len(signs)) % 2])
    return images, operations, signs, TORCHVISION["chains"]


def noise(height, width, seed=0):
    shape = (height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.mark.core
@pytest.mark.parametrize("run", [PLAIN, COMPILED], ids=["plain", "compiled"])
@pytest.mark.parametrize(
    "name, magnitude", [("square", 10), ("square", 27), ("wide", 10)]
)
def test_operations_match_torchvision(name, magnitude, run):
    *arguments, expected = single_operations(name, magnitude)
    levels = to_levels(run(*arguments, magnitude))
    rows = TORCHVISION[f"{name}_rows"]
    wrong = {
        (OPERATIONS[row[1]], int(row[2]))
        for row, ours, theirs in zip(rows, levels, expected, strict=True)
        if not np.array_equal(ours, theirs)
    }
    assert not wrong


@pytest.mark.parametrize("run", [PLAIN, COMPILED], ids=["plain", "compiled"])
def test_chains_match_torchvision(run):
    *arguments, expected = chains()
    np.testing.assert_array_equal(to_levels(run(*arguments, 10)), expected)


@pytest.mark.parametrize(
    "operation, sign, magnitude",
    [("shear_x", 1, 4), ("shear_y", -1, 4), ("rotate", 1, 30)],
)
def test_warps_differ_from_torchvision_in_ties_only(operation, sign, magnitude):
    # A position exactly between two pixels goes to either: in torchvision by
    # the last bit of a float32 sum, here by rounding to 2**-16 pixels.
    height, width, _ = TORCHVISION["odd"][0].shape
    positions = randaugment._warp_positions(height, width, magnitude)
    row = 2 * (OPERATIONS.index(operation) - 1) + (sign < 0)
    x_of_column, x_of_row, y_of_column, y_of_row = (p[row] for p in positions)

    def warped(nudge_x, nudge_y):
        nudged = x_of_column + nudge_x, x_of_row, y_of_column + nudge_y
        levels = TORCHVISION["odd"][0]
        return randaugment.warp(tf.constant(levels), *nudged, y_of_row).numpy()

    expected = TORCHVISION[f"odd_{operation}_{magnitude}"]
    differs = np.any(warped(0, 0) != expected, axis=-1)
    assert 0 < differs.mean() < 0.03
    either_side = [warped(x, y) for x in (-2, 2) for y in (-2, 2)]
    explained = np.any(
        [np.all(one == expected, axis=-1) for one in either_side], axis=0
    )
    assert explained.all()


def test_identity_leaves_images_as_they_are():
    images, operations, signs, _ = chains()
    result = COMPILED(images, np.zeros_like(operations), signs, 10)
    np.testing.assert_array_equal(result, images)


def test_images_are_rounded_to_levels():
    values = np.array([0.0, 0.4, 0.6, 99.4, 99.6, 254.6, 255.0], np.float32)
    images = tf.constant(values.reshape(1, 1, 7, 1).repeat(3, axis=3) / 255)
    result = randaugment.apply(images, [[0]], [[1.0]], 10)
    expected = [0, 0, 1, 99, 100, 255, 255]
    np.testing.assert_array_equal(to_levels(result)[0, 0, :, 1], expected)


def test_images_do_not_depend_on_each_other():
    images, operations, signs, _ = chains()
    together = COMPILED(images, operations, signs, 10).numpy()
    order = [3, 1, 1, 7, 0, 5, 6, 6]
    images, operations, signs = images.numpy(), operations, signs
    mixed = COMPILED(
        tf.constant(images[order]), operations[order], signs[order], 10
    )
    np.testing.assert_array_equal(mixed, together[order])
    for row in (0, 5):
        alone = PLAIN(
            tf.constant(images[row : row + 1]),
            operations[row : row + 1],
            signs[row : row + 1],
            10,
        )
        np.testing.assert_array_equal(alone[0], together[row])


@pytest.mark.parametrize("magnitude, right, down", [(30, 22, 9), (10, 7, 3)])
def test_translation_is_a_fraction_of_the_size(magnitude, right, down):
    # 150/331 of 50 columns and of 20 rows, and a third of that, truncated.
    levels = noise(20, 50)
    operations = [[OPERATIONS.index(f"translate_{axis}")] for axis in "xxyy"]
    signs = [[1.0], [-1.0], [1.0], [-1.0]]
    images = tf.repeat(to_images(levels)[None], 4, axis=0)
    result = to_levels(PLAIN(images, operations, signs, magnitude))
    expected = np.zeros_like(result)
    expected[0, :, right:] = levels[:, :-right]
    expected[1, :, :-right] = levels[:, right:]
    expected[2, down:] = levels[:-down]
    expected[3, :-down] = levels[down:]
    np.testing.assert_array_equal(result, expected)


def test_rotation_turns_anticlockwise_about_the_centre():
    levels = np.zeros((9, 9, 3), np.uint8)
    levels[4, 4:] = 255
    operation = [[OPERATIONS.index("rotate")]]
    image = to_images(levels)[None]
    turned = to_levels(randaugment.apply(image, operation, [[1.0]], 30))[0]
    assert turned[4, 4, 0] == 255
    # 30 degrees up from 4 pixels to the right of the centre.
    assert turned[2, 7, 0] == 255
    assert not turned[5:].any()


@pytest.mark.parametrize(
    "magnitude, bits", [(0, 8), (3, 8), (4, 7), (11, 7), (12, 6), (30, 4)]
)
def test_posterize_keeps_the_upper_bits(magnitude, bits):
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    images = to_images(levels.repeat(3, axis=3))
    operation = [[OPERATIONS.index("posterize")]]
    result = to_levels(randaugment.apply(images, operation, [[1.0]], magnitude))
    unit = 2 ** (8 - bits)
    expected = levels // unit * unit
    np.testing.assert_array_equal(result[..., :1], expected)


@pytest.mark.parametrize(
    "magnitude, kept, inverted",
    [(0, 254, 255), (1, 246, 247), (10, 169, 170), (30, None, 0)],
)
def test_solarize_inverts_from_its_threshold_on(magnitude, kept, inverted):
    threshold = 255 - 8.5 * magnitude
    if kept is not None:
        levels = tf.fill([1, 1, 3], tf.constant(kept, tf.uint8))
        result = randaugment.solarize(levels, threshold)
        np.testing.assert_array_equal(result, levels)
    levels = tf.fill([1, 1, 3], tf.constant(inverted, tf.uint8))
    result = randaugment.solarize(levels, threshold)
    np.testing.assert_array_equal(result, 255 - levels.numpy())


def test_blend_truncates_and_clips():
    levels = tf.constant([[[0, 10, 101], [200, 250, 255]]], tf.uint8)
    darker = randaugment.blend(levels, 0.0, tf.constant(0.5, tf.float64))
    assert darker.numpy().tolist() == [[[0, 5, 50], [100, 125, 127]]]
    away = randaugment.blend(levels, 100, tf.constant(1.5, tf.float64))
    assert away.numpy().tolist() == [[[0, 0, 101], [250, 255, 255]]]


def test_gray_truncates():
    pixels = [[255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]
    levels = tf.constant([pixels], tf.uint8)
    expected = [254, 76, 149, 29]  # From 254.97, 76.2, 149.7 and 29.07.
    assert randaugment.gray(levels).numpy().ravel().tolist() == expected
    assert randaugment.mean_gray(levels) == sum(expected) / 4


def test_smooth_rounds_and_keeps_the_border():
    levels = np.zeros((4, 5, 3), np.uint8)
    levels[1, 1], levels[1, 2, 0], levels[3, 4] = 13, 20, 200
    expected = levels.copy()
    expected[1:3, 1:4] = 0
    expected[1, 1:4, 0] = 7, 9, 2  # From 85 / 13, 113 / 13 and 20 / 13.
    expected[2, 1:4, 0] = 3, 3, 17  # From 33, 33 and 220 / 13.
    expected[1, 1:4, 1:] = [[5], [1], [0]]
    expected[2, 1:4, 1:] = [[1], [1], [15]]
    result = randaugment.smooth(tf.constant(levels))
    np.testing.assert_array_equal(result, expected)
    for shape in ((2, 5, 3), (5, 2, 3)):
        small = tf.constant(noise(*shape[:2]))
        np.testing.assert_array_equal(randaugment.smooth(small), small)


def test_autocontrast_works_on_each_channel():
    levels = tf.constant([[[0, 50, 7], [100, 60, 7], [255, 90, 7]]], tf.uint8)
    expected = [[[0, 0, 7], [100, 63, 7], [255, 255, 7]]]
    assert randaugment.autocontrast(levels).numpy().tolist() == expected


def test_equalize_works_on_each_channel():
    # 510 pixels at each of two levels: steps of 510 / 255 = 2 pixels put the
    # upper level at (510 + 1) / 2 = 255, the lower one at (0 + 1) / 2 = 0. In
    # the other channels fewer than 255 pixels, or none, are below the top.
    levels = np.full((2, 510, 3), (90, 90, 7), np.uint8)
    levels[1, :, 0] = 120
    levels[0, :254, 1] = 30
    expected = levels.copy()
    expected[..., 0] = np.where(levels[..., 0] == 120, 255, 0)
    result = randaugment.equalize(tf.constant(levels))
    np.testing.assert_array_equal(result, expected)
    # One pixel more below the top makes a step of one pixel.
    levels[0, 254, 1] = 30
    result = randaugment.equalize(tf.constant(levels)).numpy()
    assert result[..., 1][levels[..., 1] == 30].max() == 0
    assert result[..., 1][levels[..., 1] == 90].min() == 255


def test_sample_draws_operations_and_signs_evenly():
    drawn = randaugment.sample(tf.constant([3, 4]), 4000, 5)
    operation = drawn["randaugment_operation"].numpy()
    sign = drawn["randaugment_sign"].numpy()
    assert operation.shape == sign.shape == (4000, 5)
    assert operation.dtype == np.int32 and sign.dtype == np.float32
    for slot in range(5):
        counts = np.bincount(operation[:, slot], minlength=14)
        assert len(counts) == 14
        # 4000 / 14 = 286 with a standard deviation of 16.
        assert counts.min() > 286 - 5 * 16 and counts.max() < 286 + 5 * 16
    assert set(np.unique(sign)) == {-1.0, 1.0}
    for number in range(14):
        assert abs(sign[operation == number].mean()) < 5 / np.sqrt(1428)
    # Slots are drawn apart from each other.
    assert abs((operation[:, 0] == operation[:, 1]).mean() - 1 / 14) < 0.021


def test_sample_is_a_function_of_the_seed():
    compiled = tf.function(randaugment.sample, jit_compile=True)
    first = randaugment.sample(tf.constant([1, 2]), 64, 5)
    again = compiled(tf.constant([1, 2]), 64, 5)
    other = randaugment.sample(tf.constant([1, 3]), 64, 5)
    for name, values in first.items():
        np.testing.assert_array_equal(values, again[name])
        assert np.mean(values == other[name]) < 0.7


@pytest.mark.parametrize("magnitude", [-1, 31, 10.5, None])
def test_magnitude_is_checked(magnitude):
    images = tf.zeros([1, 4, 4, 3])
    with pytest.raises(ValueError, match=f"Received: magnitude={magnitude}"):
        randaugment.apply(images, [[0]], [[1.0]], magnitude)
