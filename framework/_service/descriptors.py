"""How many files and sockets this process may have open."""

from __future__ import annotations

from framework._base.limits import DESCRIPTORS_WANTED


def raise_limit() -> None:
    """A process needs one descriptor for each actor that it calls, a node two for each worker; many systems
    allow 1024 unless asked for more. As in Ray's `init`, the soft limit goes up, as far as the hard one lets
    it. Processes that are started later inherit it."""
    try:
        import resource
    except ImportError:  # no such limits here
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    wanted = DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(DESCRIPTORS_WANTED, hard)
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):  # macOS has another limit of its own
            pass
