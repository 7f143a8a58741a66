"""Seeds that have found something, each kept so that it stays found: (seed, options, what it found).

The options are those of `framework._sim.explore.Plan`, with `faults` as a dict of rates; what is not given
follows from the seed. A change of the simulation, or of the programs, makes other runs of the same seeds;
what a regression needs for certain is a unit test beside it.
"""

from __future__ import annotations

from typing import Any

#: some of every kind but the network's
STORM = {
    "crash_worker": 1.0,
    "crash_node": 0.15,
    "crash_head": 0.2,
    "delay": 0.05,
    "slow": 0.5,
    "stop": 0.3,
    "clock_jump": 0.3,
    "disk_full": 0.2,
    "disk_lost": 0.3,
    "add_node": 0.1,
}

REGRESSIONS: list[tuple[int, dict[str, Any], str]] = [
    (
        48,
        {"faults": {}},
        "exit_actor() was taken for a crash: the end was told before the last words were read",
    ),
    (
        1190,
        {"faults": {"crash_node": 0.46374, "stop": 0.745354, "clock_jump": 0.772361}, "operations": 35},
        "ready() of a group hung when the node of its owner was declared dead",
    ),
    (
        1154,
        {
            "faults": {
                "crash_head": 0.202553,
                "delay": 0.045948,
                "disk_full": 0.193947,
                "disk_lost": 0.357793,
            },
            "operations": 35,
        },
        "a group that was removed came back with a head whose disk was full when it died",
    ),
    (
        1214,
        {"faults": {"stop": 0.612728}, "operations": 35},
        "an owner whose node was declared dead made an actor that nobody would have ended",
    ),
    (
        1255,
        {
            "faults": {
                "power_cut": 0.277688,
                "delay": 0.071928,
                "stop": 1.115552,
                "clock_jump": 0.202802,
                "disk_full": 0.172805,
            },
            "operations": 35,
        },
        "a task failed with TimeoutError because its node stood still for 5 seconds",
    ),
    (
        1624,
        {
            "faults": {**STORM, "longest": 3.0},
            "operations": 30,
        },
        "an actor that was killed came back with a head whose disk had lost that",
    ),
    (
        1629,
        {
            "faults": {**STORM, "longest": 1.0},
            "operations": 30,
        },
        "dead for other nodes, alive for a head whose disk had lost the verdict: it kept a lease",
    ),
    (
        1641,
        {
            "faults": STORM,
            "operations": 30,
        },
        "a node that a restarted head did not know (yet) was dead for others for ever: calls hung",
    ),
    (
        2510,
        {"faults": {"reset": 5.0}, "nodes": 4},
        "a grant said into a connection that the other node had lost: the task waited for ever",
    ),
    (
        2414,
        {"faults": {"reset": 2.0, "partition": 0.2, "delay": 0.08, "crash_head": 0.1}, "nodes": 3},
        "the wish for a worker's end, lost with a connection: its lease stayed",
    ),
    (
        2003,
        {
            "faults": {"reset": 5.0},
            "nodes": 3,
            "kinds": ["borrow", "keep", "stream_shared", "owned_by_actor"],
        },
        "a connection that broke counted as the end of an owner (OwnerDiedError)",
    ),
    (
        2009,
        {"faults": {"reset": 8.0}, "nodes": 3, "kinds": ["stream_shared"]},
        "an item of a stream, taken for a reader that did not receive it",
    ),
    (
        2010,
        {"faults": {"reset": 8.0}, "nodes": 3, "kinds": ["stream_shared"]},
        "an item in the store of one node, made again on another: nobody freed the first",
    ),
    (3000, {}, "a task got into a group whose removal a head that had just come back had answered"),
    (
        3341,
        {
            "faults": {
                "crash_worker": 0.6582270331165735,
                "partition": 0.07840668966302035,
                "slow": 0.5996548212620298,
                "longest": 3.0,
            },
            "nodes": 1,
            "scheduler": "walk",
            "operations": 8,
            "skip": (0, 1, 2, 3, 5),
        },
        "an item that a second attempt made for nobody was freed before its writer had reported it",
    ),
    (
        5360,
        {
            "faults": {
                "delay": 0.08788061393313223,
                "slow": 0.15234947734154056,
                "stop": 0.3010925884463854,
                "disk_lost": 0.12777846778039076,
            },
            "nodes": 3,
            "scheduler": "priorities",
            "operations": 26,
            "skip": (18, 19, 20, 21, 22, 23, 24, 25),
        },
        "a lone task that went to an idle worker of a node known to be dead was waited for forever",
    ),
    (924, {}, "a detached actor that had been killed came back with a head whose disk had lost that"),
    (2116, {}, "who was given up heard that his actors had died with their owner, which was he himself"),
    (2842, {}, "a node kept room for ever for one that had wished for it, and did not any more"),
    (838, {}, "an object that was freed while its view was on its way was read, and its view kept for ever"),
    (20722, {}, "an actor that waited on a node was begun there, and on another node that had room, too"),
]
