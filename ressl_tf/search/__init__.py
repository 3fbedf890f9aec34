"""Nearest neighbours of an image among others, on a page to look at.

`gallery` says which images are searched and by which encoder, `index` finds
the nearest, `upload` makes an image of a file from outside, and `server` shows
it on page.html.
"""

from ressl_tf.search.gallery import load_gallery
from ressl_tf.search.gallery import open_export
from ressl_tf.search.index import Index
from ressl_tf.search.server import Limits
from ressl_tf.search.server import SearchServer

__all__ = [
    "Index",
    "Limits",
    "SearchServer",
    "load_gallery",
    "open_export",
]
