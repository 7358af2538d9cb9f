"""numba's compiler, with its cache on disk where one can be written."""

from collections.abc import Callable

import numba


def compiled(**options: object) -> Callable[[Callable], Callable]:
    """Decorate a function: `numba.njit` without the interpreter's lock, kept on disk for the next process.

    Where neither the code's folder nor the user's cache can be written to, it is compiled anew in each process.
    """

    def decorate(function: Callable) -> Callable:
        try:
            return numba.njit(nogil=True, cache=True, **options)(function)
        except RuntimeError:  # numba found no place for its cache
            return numba.njit(nogil=True, **options)(function)

    return decorate
