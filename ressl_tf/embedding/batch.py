"""A batch of image files of which some cannot be read."""

import re

import numpy as np

# How often a file has to be refused alone before it is left out.
_REFUSALS = 2
# Of the message that `Servable` raises, as servers pass it on.
_INDICES = re.compile(r"by index:\] \[([0-9 ]+)")


class UnreadableImages(Exception):
    """What a client raises for a batch with files that are not readable.

    Attributes:
        indices: list of their places in the batch; not all, if they are many.
            A server that runs several requests as one counts from the first
            image of them all.
    """

    def __init__(self, indices):
        super().__init__(f"Not readable, by index: {indices}")
        self.indices = indices


def raise_unreadable(message):
    """Raises `UnreadableImages` if that is what an error's message says."""
    found = _INDICES.search(message)
    if found:
        indices = [int(text) for text in found.group(1).split()]
        raise UnreadableImages(indices) from None


def embed_readable(client, files):
    """Embeds those of a batch that are readable.

    What is named as unreadable is asked for alone before it is left out: a
    server that runs several requests as one may mean another's image.

    Args:
        client: `LocalClient` or `ServerClient`.
        files: list of N image files, as bytes.

    Returns:
        (float32 (M, C), list of the M places in `files`); C is 0 if none is
        readable.
    """
    rows, suspects = {}, []
    waiting = list(range(len(files)))
    while waiting:
        try:
            found = client([files[index] for index in waiting])
        except UnreadableImages as error:
            named = {waiting[x] for x in error.indices if x < len(waiting)}
            named = named or set(waiting)
            suspects += named
            waiting = [index for index in waiting if index not in named]
        else:
            rows.update(zip(waiting, found, strict=True))
            waiting = []
    for index in suspects:
        row = _embed_alone(client, files[index])
        if row is not None:
            rows[index] = row
    places = sorted(rows)
    if not places:
        return np.zeros((0, 0), np.float32), []
    return np.stack([rows[index] for index in places]), places


def _embed_alone(client, file):
    for _ in range(_REFUSALS):
        try:
            return client([file])[0]
        except UnreadableImages:
            pass
    return None
