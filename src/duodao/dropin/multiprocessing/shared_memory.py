"""`multiprocessing.shared_memory` is not to be had: a clear ImportError."""

raise ImportError(
    "duodao.dropin.multiprocessing has no shared_memory: a tracker of the standard library would remove blocks that "
    "other processes still use, as the first process ends. Use Array or RawArray (numpy.frombuffer reads them), "
    "duodao.Shared, or put arrays into a Queue; or import it from multiprocessing and unlink() it yourself"
)
