"""FGVC-Aircraft for TensorFlow Datasets, which has not got it.

Importing this module makes the name `fgvc_aircraft` known, so it loads
TensorFlow Datasets: import it where the name is asked for.
"""

import io

import tensorflow_datasets as tfds
from PIL import Image

URL = (
    "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/"
    "fgvc-aircraft-2013b.tar.gz"
)
# A line with the photographer's name, which the set's authors ask to remove.
_BANNER_HEIGHT = 20


class FgvcAircraft(tfds.core.GeneratorBasedBuilder):
    """Aircraft of 100 variants (Maji et al., 2013), in the official splits.

    The banner at the bottom of each image is cut off, and the image encoded
    again, as JPEG of quality 95.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description="Fine-grained classification of aircraft.",
            homepage="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
            features=tfds.features.FeaturesDict(
                {
                    "file_name": tfds.features.Text(),
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        archive = dl_manager.download_and_extract(URL)
        folder = archive / "fgvc-aircraft-2013b" / "data"
        variants = (folder / "variants.txt").read_text().splitlines()
        self.info.features["label"].names = [v.strip() for v in variants if v]
        return {
            "train": self._generate_examples(folder, "train"),
            "validation": self._generate_examples(folder, "val"),
            "test": self._generate_examples(folder, "test"),
        }

    def _generate_examples(self, folder, part):
        lines = (folder / f"images_variant_{part}.txt").read_text()
        for line in lines.splitlines():
            # "1025794 707-320": names of variants may have spaces.
            number, _, variant = line.strip().partition(" ")
            name = f"{number}.jpg"
            file = io.BytesIO((folder / "images" / name).read_bytes())
            with Image.open(file) as image:
                width, height = image.size
                image = image.convert("RGB").crop(
                    (0, 0, width, height - _BANNER_HEIGHT)
                )
            encoded = io.BytesIO()
            image.save(encoded, "JPEG", quality=95)
            encoded.seek(0)
            yield (
                number,
                {"file_name": name, "image": encoded, "label": variant},
            )
