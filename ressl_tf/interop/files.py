"""State dicts on disk: safetensors, .npz, torch's .pth, detectron2's .pkl."""

import pickle
from pathlib import Path

import numpy as np

from ressl_tf import workdir

TORCH_SUFFIXES = (".pth", ".pt", ".tar", ".bin")
# Where training scripts keep the state dict within what they save.
_WRAPPERS = ("state_dict", "model_state_dict", "model")


def read_state_dict(path):
    """Reads a state dict.

    Args:
        path: a .safetensors or .npz file; or one that torch saved (.pth, .pt,
            .tar, .bin), which needs torch and is read weights-only, so that
            it cannot run code. A training script's checkpoint gives its
            "state_dict", "model_state_dict" or "model".

    Returns:
        {name: array}.

    Raises:
        ValueError: if the file does not exist, is of another kind or damaged,
            or if it needs a package that is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"`path` must be a file of weights. Received: path={str(path)!r}, "
            "which is none"
        )
    if path.suffix in TORCH_SUFFIXES:
        read = _read_torch
    elif path.suffix in _READERS:
        read = _READERS[path.suffix]
    else:
        raise ValueError(
            "`path` must end in .safetensors, .npz or, with torch installed, "
            f"{', '.join(TORCH_SUFFIXES)}. Received: path={str(path)!r}"
        )
    try:
        return read(path)
    except ImportError as error:
        raise _not_installed(path, error) from None
    except Exception as error:  # of each library another one
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"`path` could not be read as a {path.suffix} file of weights: "
            f"{type(error).__name__}: {reason}. Received: path={str(path)!r}"
        ) from error


def write_state_dict(path, state_dict):
    """Writes a state dict; the file appears only when it is complete.

    Args:
        path: what to write, by its suffix: .safetensors; .npz; .pth or .pt,
            with torch; or .pkl, detectron2's form of a checkpoint, whose names
            it matches by their ends.
        state_dict: {name: array}.

    Raises:
        ValueError: for another suffix, or if a package is not installed.
    """
    path = Path(path)
    if path.suffix not in _WRITERS:
        raise ValueError(
            f"`path` must end in one of {', '.join(_WRITERS)}. "
            f"Received: path={str(path)!r}"
        )
    arrays = {
        name: np.ascontiguousarray(value) for name, value in state_dict.items()
    }
    try:
        with workdir.replaced(path) as temporary:
            _WRITERS[path.suffix](temporary, arrays)
    except ImportError as error:
        raise _not_installed(path, error) from None


def _read_torch(path):
    import torch

    content = torch.load(path, map_location="cpu", weights_only=True)
    for wrapper in _WRAPPERS:
        if isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    return {
        name: value.float().numpy()
        for name, value in content.items()
        if isinstance(value, torch.Tensor)
    }


def _read_safetensors(path):
    from safetensors import numpy as safetensors

    return safetensors.load_file(path)


def _read_npz(path):
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def _write_torch(path, arrays):
    import torch

    torch.save({k: torch.from_numpy(v) for k, v in arrays.items()}, path)


def _write_safetensors(path, arrays):
    from safetensors import numpy as safetensors

    safetensors.save_file(arrays, path)


def _write_npz(path, arrays):
    with open(path, "wb") as file:  # NumPy would add a suffix to a path
        np.savez(file, **arrays)


def _write_detectron2(path, arrays):
    # What its checkpointer takes for one of its own; the last entry lets
    # "res2.0.conv1.weight" be found as "backbone.res2.0.conv1.weight".
    content = {
        "model": arrays,
        "__author__": "ressl_tf",
        "matching_heuristics": True,
    }
    with open(path, "wb") as file:
        _PortablePickler(file).dump(content)


class _PortablePickler(pickle.Pickler):
    """Arrays as a call of `numpy.ndarray`.

    NumPy 2's own pickles name modules that the NumPy of older installations
    of detectron2 does not have.
    """

    def reducer_override(self, value):
        if not isinstance(value, np.ndarray):
            return NotImplemented
        buffer = bytearray(value.tobytes())  # not bytes: those are read-only
        return np.ndarray, (value.shape, value.dtype.str, buffer)


def _not_installed(path, error):
    return ValueError(
        f"`path` is a {path.suffix} file, which needs the package "
        f"{error.name!r}: install it, or use .npz. "
        f"Received: path={str(path)!r}"
    )


_READERS = {".safetensors": _read_safetensors, ".npz": _read_npz}
_WRITERS = {
    ".safetensors": _write_safetensors,
    ".npz": _write_npz,
    ".pth": _write_torch,
    ".pt": _write_torch,
    ".pkl": _write_detectron2,
}
