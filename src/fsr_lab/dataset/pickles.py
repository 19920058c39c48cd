"""Pickles of arrays, read without running them."""

import codecs
import io
import pickle

import numpy as np

# what every pickled array starts from; numpy 1 and numpy 2 keep it in different places
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ADMITTED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("_codecs", "encode"): codecs.encode,
}


def unpickle_arrays(data: bytes, name: str) -> dict[str, object]:
    """Return the pickled dictionary of arrays, lists, text and numbers, as Python 2 or 3 wrote it.

    Args:
        data: the pickle.
        name: what it is, for messages.

    Raises:
        ValueError: it is damaged, no dictionary, or would run code.
    """
    try:
        content = _ArraysOnly(io.BytesIO(data), encoding="latin1").load()
    except (pickle.UnpicklingError, ValueError, LookupError, TypeError, AttributeError, EOFError) as err:
        raise ValueError(f"{name}: expected pickled data and labels, got {err}; replace it") from err
    if not isinstance(content, dict):
        raise ValueError(f"{name}: expected pickled data and labels, got a {type(content).__name__}; replace it")
    return content


class _ArraysOnly(pickle.Unpickler):
    """Reads dicts, lists, text, numbers and numpy arrays; a pickle that asks for anything else is refused."""

    def find_class(self, module: str, name: str) -> object:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"a pickle that would load {module}.{name} (refused)") from None
