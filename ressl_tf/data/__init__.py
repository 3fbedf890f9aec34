"""From images on disk to batches of views.

`sources` has a module for each kind of data set, `image_files` decodes whole
folders, `decoding` decodes in the graph. `readers` (and `shard_reader`, of
TFRecord files) say which images a step holds, in the `order` of a seed.
`pipeline` makes batches of views, `service` has other machines make them, and
`shards` writes what is streamed. `labelled` makes batches with labels, for
probes; `multilabel` reads images with several.
"""

from ressl_tf.data.decoding import BadImages
from ressl_tf.data.image_files import default_max_bad
from ressl_tf.data.labelled import balanced_rows
from ressl_tf.data.labelled import check_labelled
from ressl_tf.data.labelled import listed_rows
from ressl_tf.data.labelled import make_labelled_dataset
from ressl_tf.data.labelled import make_ordered_dataset
from ressl_tf.data.multilabel import MultiLabelSet
from ressl_tf.data.multilabel import load_voc2007
from ressl_tf.data.order import steps_per_epoch
from ressl_tf.data.pipeline import distribute_train_dataset
from ressl_tf.data.pipeline import make_train_dataset
from ressl_tf.data.readers import FileReader
from ressl_tf.data.readers import MemoryReader
from ressl_tf.data.readers import ShardReader
from ressl_tf.data.readers import open_reader
from ressl_tf.data.sources import SOURCES
from ressl_tf.data.sources import ImageSet
from ressl_tf.data.sources import load
from ressl_tf.data.sources import require_labels

__all__ = [
    "SOURCES",
    "BadImages",
    "FileReader",
    "ImageSet",
    "MemoryReader",
    "MultiLabelSet",
    "ShardReader",
    "balanced_rows",
    "check_labelled",
    "default_max_bad",
    "distribute_train_dataset",
    "listed_rows",
    "load",
    "load_voc2007",
    "make_labelled_dataset",
    "make_ordered_dataset",
    "make_train_dataset",
    "open_reader",
    "require_labels",
    "steps_per_epoch",
]
