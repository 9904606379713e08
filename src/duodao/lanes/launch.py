"""What a worker needs to begin a run, pickled once: the function, where the caller is, and what all calls share."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from types import ModuleType

from duodao import arena, pickling
from duodao.cost.limits import cpus
from duodao.lanes import payload, wire
from duodao.lanes.base import Work
from duodao.lanes.fleet import home
from duodao.lanes.forward import log_levels

_BLAS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


class Launch:
    """The first frame of a run to each of its workers. `release` frees what `common` has in the arena.

    Raises NotPicklable for a function, a setup factory or a shared value that can't travel; MemoryError for shared
    values that are larger than the arena.
    """

    def __init__(self, work: Work, workers: int) -> None:
        self._bare = replace(work, common={})
        self._valued = False
        self._piece: int | None = None
        self.home = home(_environ(workers))
        body = _function(self._bare)
        common = self._share(work)
        argv = [str(word) for word in sys.argv]
        self._meta = (self.home.cwd, self.home.path, argv, self.home.environ, log_levels(), common)
        self.frame = wire.parts(wire.RUN, meta=self._meta, body=body)

    def by_value(self, error: BaseException) -> bool:
        """Make the frame again, with the module that a worker could not import in it; False when that was tried."""
        module = culprit(error, self._bare)
        if self._valued or module is None:
            return False
        self._valued = True
        import cloudpickle

        cloudpickle.register_pickle_by_value(module)
        try:
            body = pickling.by_value(self._bare)
        except wire.Raised:
            return False
        finally:
            cloudpickle.unregister_pickle_by_value(module)
        self.frame = wire.parts(wire.RUN, meta=self._meta, body=body)
        return True

    def _share(self, work: Work) -> tuple[int, list[payload.Place], list[str]] | None:
        if not work.common:
            return None
        try:
            body, large = payload.pack(list(work.common.values()))
        except wire.Raised as error:
            raise wire.not_picklable(dict(work.common), "common", error) from error
        buffers = payload.Buffers()
        buffers.add(memoryview(body))
        if large is not None:
            for view, kind in zip(large.views, large.kinds, strict=True):
                buffers.add(view, kind)
        exported = payload.export(buffers)
        if exported is None:
            raise MemoryError(f"the {buffers.size} bytes of common= don't fit into the shared memory")
        self._piece, places = exported
        return self._piece, places, list(work.common)

    def release(self) -> None:
        """Free the shared values: no worker of the run looks at them any more. Idempotent."""
        if self._piece is not None:
            piece, self._piece = self._piece, None
            arena.get().free(piece)


def _function(bare: Work) -> bytes:
    try:
        return wire.dumps(bare)
    except wire.Raised as error:
        raise wire.not_picklable(bare.function, "function", error) from error


def culprit(error: BaseException, work: Work) -> ModuleType | None:
    """The module that exists here and can't be imported there: one that was made or loaded by hand."""
    for name in (getattr(error, "name", None), getattr(work.function, "__module__", None)):
        module = sys.modules.get(name or "")
        if module is not None and isinstance(error, ImportError | AttributeError):
            return module
    return None


def _environ(workers: int) -> dict[str, str]:
    """The caller's, and as many threads for each worker's linear algebra as there are cores for it, if not set."""
    environ = dict(os.environ)
    width = str(max(1, cpus() // workers))
    for name in _BLAS:
        environ.setdefault(name, width)
    return environ
