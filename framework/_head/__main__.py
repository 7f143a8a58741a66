"""The process of a cluster's head. `framework._node.launching` starts it.

``sys.argv[2]``: a JSON object with

- ``session_dir``: of the head node: ``sockets/head`` is made in it, logs go to ``logs/head.log``;
- ``ready_fd``: a byte is written there when it serves (absent at no time); EOF without one: it failed;
- ``bind``: the address to listen at ("127.0.0.1", "0.0.0.0", ...);
- ``state``: path of the SQLite file (below session_dir);
- ``alone_grace``: optional, seconds: it ends when it has had no nodes for so long (the first have more time);
- ``parent_pid``: optional: ends when that process is gone (SIGCONT as parent-death signal, pidfd watch).

``<session_dir>/head.json`` (0600; `framework._service.credentials.read_private`) holds
`ClusterFacts.to_dict()` (node_id is "" there). ``head`` in it is HOST:PORT as others reach it; PORT 0: any
free one. The head writes the file again (`write_private`) with the real port before it writes the ready byte,
and ``head.pid`` (its pid). Started anew on the same directory it takes port, cluster id and state from there.
SIGTERM ends it in order, and the cluster: it tells all nodes to end, closes its listeners, removes
``sockets/head`` and ``head.pid``. Killed and started again it goes on where it was.
"""

from __future__ import annotations

import json
import sys

from framework._service.descriptors import raise_limit
from framework._service.launch import close_others


def main() -> None:
    """See above."""
    config = json.loads(sys.argv[2])
    close_others([config["ready_fd"]])
    raise_limit()
    from framework._head.cluster import make_head
    from framework._head.process import run_head
    from framework._node.session import sweep_head

    run_head(config, make_head, sweep_head)


if __name__ == "__main__":
    main()
