"""Images, their embeddings, and which of them are nearest to another."""

from typing import NamedTuple

from ressl_tf.evaluation import features
from ressl_tf.evaluation import knn


class Neighbour(NamedTuple):
    """An image of the index.

    Attributes:
        number: its place in the index.
        similarity: cosine similarity to what was searched, -1 to 1.
    """

    number: int
    similarity: float


class Index:
    """Finds the nearest of some images by the cosine of their embeddings.

    May be asked by several threads at once.

    Args:
        image_set: `ImageSet` of N images, kept as they are.
        encode: function from float32 (B, H, W, 3) images in 0-255 to
            embeddings (B, C).
        progress: whether to print a progress bar. Defaults to `False`.

    Attributes:
        image_set: the `ImageSet`.
        embeddings: float32 (N, C).

    Raises:
        ValueError: if an embedding is not finite.
    """

    def __init__(self, image_set, encode, *, progress=False):
        self.image_set = image_set
        self._extract = features.FeatureExtractor(encode)
        self.embeddings = features.check_features(
            "embeddings", self._extract(image_set.images, progress=progress)
        )
        self.nearest_of(0, 1)  # traced here, for nobody to wait for it

    @property
    def num_images(self):
        return len(self.embeddings)

    def nearest(self, image, count):
        """The images nearest to one from outside, the most similar first.

        Args:
            image: uint8 (H, W, 3), of the index's size.
            count: how many, at most.

        Returns:
            List of `Neighbour`s.
        """
        return self._nearest(self._extract(image[None]), count)

    def nearest_of(self, number, count):
        """The others nearest to one of the images, the most similar first.

        Args:
            number: its place in the index.
            count: how many, at most.

        Returns:
            List of `Neighbour`s.
        """
        query = self.embeddings[number : number + 1]
        # Equal images may stand before the image itself.
        found = self._nearest(query, count + 1)
        return [x for x in found if x.number != number][:count]

    def label(self, number):
        """The label of an image, an integer; None if it has none."""
        labels = self.image_set.labels
        if labels is None or labels[number] < 0:
            return None
        return int(labels[number])

    def _nearest(self, query, count):
        numbers, similarities = knn.nearest_neighbours(
            query, self.embeddings, min(count, self.num_images)
        )
        pairs = zip(numbers[0].tolist(), similarities[0].tolist(), strict=True)
        return [Neighbour(*pair) for pair in pairs]
