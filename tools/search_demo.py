"""A page on this machine that finds the images nearest to yours.

    python -m tools.search_demo --model=DIR/export/encoder
    python -m tools.search_demo --model=DIR/export/encoder --source=folder:PATH

Drop an image on the page, or click one of the gallery's: it shows the nearest
of the gallery by cosine similarity of the exported encoder's embeddings. Ctrl-C
ends it. See docs/search_demo.md.
"""

from pathlib import Path

from absl import flags

from tools import command

MODEL = flags.DEFINE_string(
    "model",
    None,
    "An export, DIR/export/NAME, or one of its versions.",
    required=True,
)
SOURCE = flags.DEFINE_string(
    "source", None, "Images to search; default: those of the pre-training."
)
SPLIT = flags.DEFINE_string(
    "split",
    None,
    "'train' or 'test', of tfds: sources also parts as 'train[:5000]'; "
    "default: the pre-training's, and 'train' of another source.",
)
DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "For tfds: sources; default: the pre-training's."
)
NUM_IMAGES = flags.DEFINE_integer(
    "num_images",
    2000,
    "To search, at most; as many of each class as can be.",
    lower_bound=1,
)
NUM_NEIGHBOURS = flags.DEFINE_integer(
    "num_neighbours", 12, "To show.", lower_bound=1, upper_bound=100
)
PORT = flags.DEFINE_integer(
    "port",
    8080,
    "Of 127.0.0.1; 0 for any that is free.",
    lower_bound=0,
    upper_bound=65535,
)
MAX_MEGABYTES = flags.DEFINE_float(
    "max_megabytes", 10.0, "Of an image file.", lower_bound=0.001
)


def main():
    from ressl_tf import search

    limits = search.Limits(max_bytes=int(MAX_MEGABYTES.value * 1e6))
    try:
        # The port first: who cannot have it need not wait for the images.
        with search.SearchServer(PORT.value, limits) as server:
            exported = search.open_export(MODEL.value)
            images, source, split = search.load_gallery(
                exported.card,
                SOURCE.value,
                SPLIT.value,
                DATA_DIR.value,
                image_size=exported.image_size,
                num_images=NUM_IMAGES.value,
            )
            index = search.Index(images, exported.encode, progress=True)
            about = _about(exported.card, index, source, split)
            print(f"{server.url} searches {about}. Ctrl-C ends it.", flush=True)
            server.serve(index, about, NUM_NEIGHBOURS.value)
    except KeyboardInterrupt:
        print()


def _about(card, index, source, split):
    kind, _, name = source.partition(":")
    if kind in ("folder", "npz"):
        source = Path(name).name  # whoever sees the page need not see folders
    return (
        f"{index.num_images:,} images of {source} ({split}) with "
        f"{card['name']}, the {card['branch']} after {card['steps']:,} steps"
    )


if __name__ == "__main__":
    command.run(main)
