"""Pickling and copying of networks and encoders: a bundle's are opened again, from the bundle and the same options.

What a backend's library holds cannot be pickled, and need not be: the folder and the options say it all. The bundle
checks itself that it is still the same (:mod:`fastdc.bundle.folder`). A network or encoder that was given from Python
is pickled as it is, if its parts can be.
"""

import copy
import importlib
import pickle
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from fastdc.support import FastdcError, InputError, one_line

T = TypeVar("T")

_PICKLERS = ("cloudpickle", "joblib.externals.cloudpickle", "ray.cloudpickle")
"""Modules that pickle more functions than Python does, and that other libraries pickle with."""


class Reopened:
    """Base of what can be opened again.

    Attributes:
        again: The function that opened this from a bundle, and its arguments; None if something else made this.
    """

    again: tuple[Callable[..., Any], tuple[Any, ...]] | None = None

    def __reduce_ex__(self, protocol: Any) -> Any:
        return super().__reduce_ex__(protocol) if self.again is None else self.again


def check_pickles(parts: Iterable[object]) -> None:
    """Refuses to pickle networks and encoders given from Python that cannot be pickled.

    Args:
        parts: Networks and encoders.

    Raises:
        InputError: One of them cannot be pickled, neither by Python nor by another pickler that was imported.

    Example:
        >>> from fastdc.backends import check_pickles
        >>> check_pickles(clf.networks)
    """
    picklers = [pickle, *(importlib.import_module(name) for name in _PICKLERS if name in sys.modules)]
    for part in parts:
        if getattr(part, "again", None) is not None:
            continue
        causes: list[Exception] = []
        for pickler in picklers:
            try:
                pickler.dumps(part)
            except Exception as error:  # of any foreign object
                causes.append(error)
            else:
                break
        if len(causes) == len(picklers):
            raise _refusal("pickled", part, causes[0])


def copied(part: T, memo: dict[int, Any]) -> T:
    """A deep copy of a network or an encoder.

    Args:
        part: The network or encoder.
        memo: See ``copy.deepcopy``.

    Raises:
        InputError: It was given from Python, and cannot be copied.
        BundleError: Its bundle was changed.

    Example:
        >>> from fastdc.backends import copied
        >>> copied(clf.network, {}) is clf.network
        False
    """
    try:
        return copy.deepcopy(part, memo)
    except FastdcError:
        raise
    except Exception as error:  # of any foreign object
        raise _refusal("copied", part, error) from None


def _refusal(done: str, part: object, error: Exception) -> InputError:
    return InputError(
        f"the classifier cannot be {done}, as its {type(part).__name__} was given from Python and cannot be "
        f"({one_line(error, 120)}): make it of a function or class at the top of a module, or load an exported bundle"
    )
