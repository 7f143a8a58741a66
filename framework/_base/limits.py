"""Every bound of the system, in one place. Sizes in bytes, times in seconds, unless the name says
otherwise.
"""

from __future__ import annotations

TYPE_CHECKING = False  # (until a node has been started, nothing loads `typing`: see `framework._session`)
if TYPE_CHECKING:
    from typing import Final

# --- wire ------------------------------------------------------------------------------------------
PROTOCOL_VERSION: Final = 1
MAX_HANDSHAKE_FRAME: Final = 1024 * 1024  #: a HELLO holds names, numbers and the search path of modules
MAX_HANDSHAKE_ITEMS: Final = 4096  #: an array costs memory as soon as it is announced
MAX_FRAME: Final = 2**31 - 1  #: the most that msgpack's Unpacker can buffer
MAX_ARRAY_ITEMS: Final = 2_000_000
MAX_MAP_ITEMS: Final = 100_000
RECV_CHUNK: Final = 256 * 1024
DECODER_BUFFER: Final = 32 * 1024  #: of a connection that has only had frames that fit
SEND_CHUNK: Final = 1024 * 1024
SEND_HIGH_WATER: Final = 8 * 1024 * 1024  #: bytes that a peer has not taken at which its connection is full
SEND_LOW_WATER: Final = 2 * 1024 * 1024  #: at which it is not any more
SEND_MAX: Final = 1024 * 1024 * 1024  #: at which the peer is cut off
FULL_INLINE: Final = 1024  #: larger results go through the store while the caller's connection is full
HELLO_TIMEOUT: Final = 5.0
MAX_UNAUTHENTICATED: Final = 256  #: connections of one listener whose peers have not proved themselves yet
ACCEPT_BATCH: Final = 32  #: connections that are accepted in one turn of the loop
ACCEPT_PAUSE: Final = 0.25  #: after a failure to accept a connection (no descriptors left)
CONNECT_TIMEOUT: Final = 5.0
LISTEN_BACKLOG: Final = 512
DIRECT_FRAME: Final = 16 * 1024  #: a larger frame is always read by the loop
DIRECT_AFTER: Final = 3  #: lone frames on a connection, before threads read it that wait for one
DIRECT_AGAIN: Final = 16  #: the same, after a thread has met what it cannot deal with
DIRECT_LATE: Final = 1000  #: the same, after an application's loop that reads was found blocked
SPIN: Final = (
    100_000  #: nanoseconds for which an idle worker looks for its next call, and a loop for an answer
)
SPIN_AGAIN: Final = 1024  #: answers, at most, for which a loop that has looked in vain does not do so again
SIGNAL_LOOK: Final = 0.5  #: seconds; how long a signal may be overlooked: see `_service.blocking`
WAKE: Final = 60_000  #: nanoseconds that waking up may take
DROPS_AT_ONCE: Final = (
    10_000  #: dropped references that are taken in before whoever waited for results goes on
)
DROPS_WAIT: Final = 0.001  #: seconds until that happens with fewer
DIRECT_DROPS: Final = 64  #: references that may be dropped before the loop is woken for them
CONNECT_AGAIN: Final = 0.05  #: between attempts to reach an actor that lives

# --- objects ---------------------------------------------------------------------------------------
INLINE_LIMIT: Final = 100 * 1024  #: results up to this size travel inline and live with their owner
DETACHED_INLINE_LIMIT: Final = (
    16 * 1024 * 1024  #: of an argument that a detached actor keeps for restarts, when its creator may be gone
)
DROP_TICK: Final = 0.05  #: how soon dropped references are noticed by an otherwise idle process
DROP_TICK_MAX: Final = 0.25

# --- submission ------------------------------------------------------------------------------------
LEASE_BUDGET_US: Final = 5_000  #: work, by measured run time, that is sent ahead to one worker
LEASE_BUDGET_MOST_US: Final = 20_000  #: the same, while much waits
LEASE_AHEAD_PART: Final = 8  #: and no more than this part of a worker's share in what waits
LEASE_MAX_DEPTH: Final = 1_000  #: tasks that are sent ahead to one worker
LEASE_MIN_COST_US: Final = 5  #: what a task is taken to cost at the least
RETURNS_KNOWN: Final = 10_000  #: returns of a task, the ends of whose ids are kept for the next one
TASKS_IN_FRAME: Final = 250  #: tasks that are sent in one frame at most
GIVE_WAY_AFTER: Final = 250  #: tasks of a burst, after which a thread lets the loop send them
GIVE_WAY: Final = 2e-5
LIGHT_ARGUMENT: Final = 1024  #: tasks with larger arguments are packed one by one, by who submits them
LIGHT_ARGUMENTS: Final = 16  #: and those with more of them
LEASE_IDLE: Final = 0.25  #: an idle lease is returned after this time
MAX_LEASES_WANTED: Final = 256  #: leases that one owner asks for at a time, per scheduling key
STALL: Final = 0.02  #: a worker silent for this long has its unstarted tasks taken back
MAX_PENDING_PER_ACTOR_CONNECTION: Final = 10_000

# --- streams ---------------------------------------------------------------------------------------
STREAM_CLOSE_GRACE: Final = 1.0  #: between asking a producer to stop at its next item and interrupting it
ITEMS_IN_FRAME: Final = 32  #: items of a generator that are sent in one frame at most
LEND_AFTER: Final = 0.001  #: seconds that a generator waits for its consumer before it lends its CPUs out
STREAM_WINDOW: Final = 64  #: items that a generator task may run ahead of its consumer, by default
STREAM_BURST: Final = 1024  #: the same, while they are small and follow quickly on each other
QUICK_ITEM_NS: Final = 50_000  #: nanoseconds per item that count as quick

# --- pools -----------------------------------------------------------------------------------------
POOL_IMAP_AHEAD: Final = 8  #: chunks per process that `Pool.imap` reads and keeps ahead of its consumer

# --- node ------------------------------------------------------------------------------------------
MAX_WORKERS: Final = 4_096
WORKER_START_TIMEOUT: Final = 60.0
WORKER_START_ATTEMPTS: Final = (
    3  #: processes that may die in a row while they start, before tasks fail for it
)
WORKER_IDLE_TIMEOUT: Final = 1.0  #: idle workers beyond one per CPU are ended after this time
WORKERS_AT_HAND: Final = 2  #: so many workers without an actor are there (or fewer, with fewer CPUs), ...
WORKER_REPLENISH: Final = 0.01  #: ... so long after actors have taken those that were
RETIRED_LOOK: Final = 0.005  #: a worker that has reached `max_calls` looks so often whether it may end
RETIRED_LOOKS: Final = 20  #: and after so many looks, ...
RETIRED_SELDOM: Final = 0.25  #: ... so often
NODE_START_TIMEOUT: Final = 60.0
DESCRIPTORS_WANTED: Final = 65_536  #: the soft limit of open files is raised to this, as Ray does
REGISTERING: Final = 0.5  #: how long `kill` waits until owners know of what this process has borrowed
EXIT_GRACE: Final = 1.0  #: between asking a process to end and killing it
CANCEL_GRACE: Final = 5.0  #: between interrupting a task whose time is up and killing its worker
DEATH_VERDICT_TIMEOUT: Final = 5.0  #: how long an owner waits for the node to name a worker's cause of death
LOG_POLL: Final = 0.1
LOG_POLL_BYTES: Final = 1024 * 1024
LOG_FILES_KEPT: Final = 2_000  #: of workers that have ended, per node; a file for each stream that was used
SESSIONS_KEPT: Final = 10  #: old sessions whose logs are kept

MEMORY_THRESHOLD: Final = 0.95  #: share of memory in use at which a worker is ended, as Ray has it
MEMORY_POLL: Final = 0.25
MEMORY_RECOVERY: Final = 1.0  #: after ending a worker, before another may be
MEMORY_VICTIM_FLOOR: Final = 64 * 1024 * 1024  #: workers that use less are left alone
OOM_RETRIES: Final = (
    5  #: how often a task that may be retried is run again after its worker was ended for memory
)

# --- ends ------------------------------------------------------------------------------------------
SHUTDOWN_GRACE: Final = 2.0
SHUTDOWN_HOOK_GRACE: Final = 10.0  #: for the shutdown hook of an actor
SESSION_HOOK_GRACE: Final = 1.5  #: for all of them, when the session ends
METHOD_TABLES_KEPT: Final = 256  #: of actor classes whose handles have come from elsewhere
POISON_DEATHS: Final = 10  #: deaths of an actor in the middle of one call, after which it is not tried again
SUSPECT_DEATHS: Final = 3  #: after so many, a call is sent alone, to see whether it is the reason
SUSPECT_PATIENCE: Final = 1.0  #: how long it stays alone, if it does not end: others may be what it waits for
SUSPECT_PATIENCE_MIN: Final = 0.01  #: the same, after several have not ended
MAX_ERROR_TEXT: Final = 64 * 1024
UNIX_PATH_MAX: Final = 100  #: sockaddr_un holds 108 bytes on Linux, 104 on macOS

# --- object store ----------------------------------------------------------------------------------
STORE_SHARE: Final = 0.3  #: of the machine's memory, where `object_store_memory` is not given
STORE_MINIMUM: Final = 16 * 1024 * 1024
STORE_REGION: Final = 32 * 1024 * 1024  #: what a client leases at a time for small objects
STORE_REGION_OBJECT: Final = 2 * 1024 * 1024  #: larger ones ask for a block of their own
STORE_CHUNK: Final = 1024 * 1024  #: memory is mapped for writing in pieces of this size
STORE_SHARED_COPY: Final = 16 * 1024 * 1024  #: from here on several threads copy an object (2 ms by one)
STORE_COPY_THREADS: Final = 4  #: and no more: the memory is not faster than that
STORE_COPY_PART: Final = 8 * 1024 * 1024  #: that one of them takes at a time, at least
STORE_SMALLEST: Final = 1024 * 1024  #: below that, nothing that belongs into a store would fit
STORE_KEPT_VIEWS: Final = 1_000  #: views that a process keeps after their last use
STORE_RECALLED: Final = 1_000  #: objects of which a process knows that the node wants them back
STORE_PIN_BATCH: Final = 1_000  #: pins that are asked for in one message
STORE_RESTORE_AHEAD: Final = 4  #: spilled objects that one reader of many has read back at a time
STORE_WARM_RESERVE: Final = 256 * 1024 * 1024  #: free memory that a store in use has ready
STORE_WARM_FREE_PART: Final = 16  #: and no more than this part of the memory that nobody uses
STORE_WARM_AFTER: Final = 1.0  #: not while objects are received, and not in the first second or so after that
STORE_WARM_NICENESS: Final = 15  #: of the thread that does it
STORE_WARM_STEP: Final = 8 * 1024 * 1024  #: provided at a time, in a thread of the node
FUNCTIONS_KEPT: Final = 256  #: functions that came last, which workers keep though nobody may call them
FUNCTIONS_KEPT_BYTES: Final = 32 * 1024 * 1024  #: and no more of them than that
METHOD_TEMPLATES_KEPT: Final = 256  #: ways of calling one actor (method, options, name) that came last
LINEAGE_BYTES: Final = 256 * 1024 * 1024  #: what an owner keeps to make lost objects again
MAX_RECOVERIES: Final = 10  #: how often one read has a lost object made again before it gives up
STORE_PRESSURE: Final = 1.0  #: after the node was short of memory, views are not kept for so long
STORE_FULL_GRACE: Final = 10.0  #: how long a request waits for space in a full store

# --- patterns --------------------------------------------------------------------------------------
POOL_READ_AHEAD: Final = 1_000  #: items of ActorPool.map that are done or waiting before they are taken
QUEUE_WAITING: Final = 1_000_000  #: blocked calls that a Queue serves at a time, in each direction
QUEUE_ATTEND_AFTER: Final = 0.1  #: a call that waits this long has its Queue watch for the caller's death

# --- output ----------------------------------------------------------------------------------------
LINE_BYTES: Final = 64 * 1024  #: longer lines are cut into pieces
NAME_CHARS: Final = 256  #: of the name of a task or actor before its lines
LOG_FINAL_BYTES: Final = 4 * 1024 * 1024  #: per file, read of what a worker that has ended has left
LOG_BATCHES_WAITING: Final = 1_000  #: for a slow terminal; beyond, lines are counted, not shown
LOG_CLOSE_GRACE: Final = 1.0  #: that the terminal gets to take the last lines
DEDUP_WINDOW: Final = 5.0  #: in which the same line from several processes is shown once
DEDUP_PATTERNS: Final = 4_096  #: lines that are remembered; for more, the oldest is given out early
DEDUP_LINE: Final = 1_024  #: characters; longer lines are always shown
WARNED_LINES: Final = 1_000  #: lines of user code that are warned about blocking calls

# --- serialization ---------------------------------------------------------------------------------
PICKLE_BUFFER: Final = 8 * 1024  #: shorter buffers stay in the pickle: a copy costs less than one more object
PICKLER_REUSED: Final = (
    64
    * 1024  #: a pickler that wrote more is not kept: its memo table never shrinks, and is swept at each use
)
MAX_ATOM_STR: Final = (
    64 * 1024  #: longer strings are pickled: the control connections bound the strings they unpack
)
MAX_ERROR_CAUSE: Final = 1024 * 1024  #: of a pickled cause: no bulk data on control connections
MAX_ERROR_NAME: Final = 1_024  #: characters of a name in an error
CULPRIT_DEPTH: Final = 32  #: steps of the path to what cannot be pickled: longer ones help nobody
CULPRIT_PROBES: Final = (
    400  #: attempts of pickling in one search: enough for 20 levels of a million children each
)
CULPRIT_CHILDREN: Final = 1_000_000  #: looked at in one container
CULPRIT_KEY_TEXT: Final = 40  #: characters of a key's repr in a path

# --- processes -------------------------------------------------------------------------------------
MAX_ZYGOTES: Final = (
    8  #: beside the first; beyond, those without workers end (see `runtime_env`, load-time variables)
)
ZYGOTE_IDLE: Final = 30.0  #: a zygote beside the first that has had no workers for so long ends
EARLY_FORKS: Final = 2  #: workers that do not wait for their zygote to load numpy
EARLY_WAIT: Final = 0.5  #: after which an idle zygote loads it anyway
EARLY_PAUSE: Final = 0.05  #: the same when those have been forked: they have their first tasks to run
MAX_ZYGOTE_BUFFER: Final = 1024 * 1024  #: of messages between a node and a zygote
FLUSH_AFTER_NS: Final = 500_000  #: nanoseconds that a reply waits for company
FLUSH_ELSEWHERE: Final = 0.002  #: the same, where user code holds up who sends it: async actors, generators
INTERRUPT_AGAIN: Final = 0.01  #: between attempts to interrupt a task that is in our own code for the moment
EARLY_CANCELS: Final = (
    1_000  #: cancels remembered of tasks that have just been taken from the queue, or are just done
)
ASYNC_CONCURRENCY: Final = 1_000  #: calls at a time of an async actor, as Ray documents
ACTORS_ENDED_KEPT: Final = 1_000  #: actors whose end a process tells again to a head that was away
MAX_DEAD_KEPT: Final = 10_000  #: dead actors that are remembered, for whoever still asks why; oldest go first
DEAD_BYTES_KEPT: Final = 16 * 1024 * 1024  #: and no more of them than that: errors may be long
MAX_FREED_EARLY: Final = 10_000  #: objects that were freed before their writer had reported them
TRIM_INTERVAL: Final = 30.0  #: after which nodes and heads give memory back that lies in pieces

# --- clusters: token, certificate, processes --------------------------------------------------------
TOKEN_SIZE: Final = 32  #: bytes of a cluster's shared secret
TOKEN_MINIMUM: Final = 16  #: of one that somebody has chosen
CERTIFICATE_DAYS: Final = 3650
HEAD_ALONE: Final = 2.0  #: a head whose nodes have all gone ends after this time, unless its starter lives

# --- clusters: the head and its nodes ---------------------------------------------------------------
HEARTBEAT: Final = 1.0  #: a node says that it lives, and the head that it hears
NODE_SILENCE: Final = 4.0  #: after which a node is dead; after which a node takes its head for gone
NODE_BACK: Final = 1.0  #: in which a node must be back whose connection was lost
NODE_BACK_AFTER_RESTART: Final = 5.0  #: the same, after a restart of the head
OWNER_BACK: Final = 3.0  #: in which a driver or worker must be back that had lost its connection to the head
OWNER_BACK_AFTER_RESTART: Final = 10.0
HEAD_RETURN_TIMEOUT: Final = 60.0  #: how long nodes and drivers wait for a head that is gone
LISTING_TIMEOUT: Final = 2.0  #: for the answer of a process or node that is asked for what it has
HEAD_SLOW: Final = 4.0  #: a driver is told when the head has not answered for so long
HEAD_RESTARTS: Final = 5  #: starts of a head that has died, by the node beside it, within that time
HEAD_RESTART_PAUSE: Final = 1.0  #: before another attempt, when it has not come up
HEAD_RETRY: Final = 0.02  #: between attempts to reach it, at first
HEAD_RETRY_MAX: Final = 0.5
VIEW_BATCH: Final = 0.05  #: changes of rows are told to the nodes no more often than this
VIEW_BATCH_NODES: Final = 20  #: with more nodes, proportionally less often
MEMBERSHIP_CHECK: Final = 0.1  #: between looks at who is silent
PLACE_AGAIN: Final = 0.01  #: after something has changed, before what waits for a node is tried again
PLACE_PATIENCE: Final = 0.1  #: that an actor waits for a node with room, before it waits in the queue of one
PLACE_ELSEWHERE: Final = 1.0  #: after which one that waits there may go to another node
LOAD_BATCH: Final = 0.05  #: a node tells its load no more often than this
NODES_DEAD_KEPT: Final = 1_000  #: nodes that are dead and still shown
LAST_WORDS_KEPT: Final = 1_000  #: ends of actors and owners that a node tells a head again that has returned
LAST_WORDS_AGE: Final = 30.0  #: and that long, after it has heard them
FENCED_KEPT: Final = 100_000  #: ids of dead nodes that may not come back
HEAD_LOG_BYTES: Final = 4 * 1024 * 1024  #: of changes, after which the head's log is folded into its file
JOBS_OVER_KEPT: Final = 200  #: jobs that have ended, of which nodes that come back are told
PENDING_SHAPES: Final = 100  #: of what waits, that a node tells
DRAIN_TIMEOUT: Final = 600.0  #: for the work of a node that is to end, on the command line
DRAIN_RATE: Final = 50e6  #: bytes per second that a node that drains is given for its objects, beyond that
DRAIN_LOOK: Final = 1.0  #: how often one who waits for that asks what it waits for
AUTOSCALER_IDLE: Final = 60.0  #: a node that the autoscaler has made and that is idle for so long ends
AUTOSCALER_INTERVAL: Final = 1.0  #: between two looks at the cluster
OUTPUT_UNDERWAY: Final = 8  #: batches of printed lines on their way to a driver on another node
OUTPUT_FLUSH_NODES: Final = 32  #: in larger clusters only connected nodes are asked for the last lines
SHOWN_ID: Final = 12  #: digits of an id, where the beginning will do
TEST_STORE: Final = (
    150 * 1024 * 1024
)  #: object store of a node of `cluster_utils.Cluster`, as Ray's helper has it
LABEL_LENGTH: Final = 63  #: characters of a label's value, and of its name behind the prefix, as Ray has it

# --- clusters: the network --------------------------------------------------------------------------
AUTHENTICATION_GRACE: Final = 0.5  #: in which a peer proves itself; slower ones give way when too many do not
MACHINE_SILENCE: Final = 16.0  #: in which what is sent to another machine must be acknowledged by it
REACH_TIMEOUT: Final = 20.0  #: how long another process is tried to be reached that nobody calls dead
MAX_NEIGHBOUR_CONNECTIONS: Final = 4  #: from one node; beyond, the oldest is closed
GONE_NODES_KEPT: Final = 1_000  #: dead nodes that nothing is to be sent to any more
GONE_NODES_TOLD: Final = 100  #: of them, to processes that start later
RECEIVER_GRACE: Final = 30.0  #: what was sent last over a connection that is lost may be in use there
KEEPALIVE_IDLE: Final = 5  #: seconds of silence after which the system asks whether the other machine lives
KEEPALIVE_EVERY: Final = 2  #: and again
KEEPALIVE_COUNT: Final = 5  #: how often, before the connection is lost

# --- placement groups ------------------------------------------------------------------------------
PACKING_STEPS: Final = 10_000  #: of the search for a place, when the simple ways have found none
GROUP_LEAVE: Final = 0.5  #: for leases in a group that is removed, before their processes are ended
GROUPS_REMOVED_KEPT: Final = 1_000  #: placement groups that are gone and still shown; oldest go first
GROUP_NAMES_KEPT: Final = 256  #: resources of groups whose names have been taken apart, in each process
MAX_BUNDLES: Final = 10_000  #: of one placement group
GROUP_LOAD_PAUSE: Final = 5e-5  #: per resource of a node, between two tellings of its load for new bundles
GROUP_AGAIN: Final = 0.01  #: after a node has refused bundles, before the next attempt to place them; doubles
GROUP_AGAIN_MAX: Final = 1.0

# --- clusters: scheduling ---------------------------------------------------------------------------
AGING: Final = 10.0  #: a request that waits climbs one level of priority in this time
LEASE_QUANTUM: Final = 0.5  #: how long a lease is left to its owner while other jobs wait for their share
RECALL_EVERY: Final = 0.05
RECALL_AGAIN: Final = 1.0  #: a lease that was asked back and has not come is asked back again
RESERVE: Final = 5.0  #: what becomes free is kept for a large request that waits, for so long at a time
SCHEDULE_AGAIN: Final = 0.25  #: while requests wait, a node looks at them at least so often
WISH_LASTS: Final = 0.6  #: what one node tells another of what waits there holds for so long
WISH_NODES: Final = 4  #: nodes that are told of one request at a time
NEAR_PATIENCE: Final = 0.05  #: that a task waits for room where its data is, while others may make some
SOFT_PATIENCE: Final = 0.5  #: that a task waits for news of a node that it would rather run on
UNKNOWN_NODE_GRACE: Final = 2.0  #: in which a node may become known that a request names
LOCALITY_MIN: Final = 1024 * 1024  #: bytes of arguments on another node that draw a task there
RECALL_LOOKS: Final = 8  #: requests for which leases may be asked back at a time
FORWARD_ATTEMPTS: Final = 20  #: after which what was asked of that node is asked of others
UNREACHABLE: Final = 5.0  #: nothing is asked of a node for so long that could not be reached
FORWARD_AGAIN: Final = 0.1  #: between attempts to reach a node whose leases are held

# --- clusters: objects ------------------------------------------------------------------------------
PULLS_AT_ONCE: Final = 8  #: transfers to a node that are under way at the same time
PULL_BYTES: Final = 2 * 1024 * 1024 * 1024  #: of those, in all; a larger one goes alone
SENDS_AT_ONCE: Final = 16  #: transfers from a node
COPY_FAN_OUT: Final = 2  #: transfers of one object from one node; others are sent to those who have it
PULL_UNWANTED: Final = 2.0  #: a process gives up what nobody there has waited for during this time
PULL_FOUND: Final = 10_000  #: objects of nodes that are dead, of which is remembered who had them
PULL_HOPS: Final = 16  #: from node to node, before the first has to give it
PULL_RETRY: Final = 0.2  #: between attempts to reach a node that is not declared dead
SOURCE_UNKNOWN: Final = 0.6  #: how long a node that nobody has told of may still turn out to exist
SEARCH_TIMEOUT: Final = 1.0  #: for the answers of all nodes that are asked who has an object
FREED_LATELY: Final = 10_000  #: objects whose copies are to go also when they are reported late
PULL_PATIENCE: Final = 60.0  #: how long that goes on
SOURCE_GRACE: Final = 2.0  #: how long a node waits for the writer of an object that it is asked for
TRANSFER_SILENCE: Final = 20.0  #: after which a transfer is broken off
TRANSFER_CHUNK: Final = 1024 * 1024  #: received or sent by one call
TRANSFER_POLL: Final = 0.2  #: how soon a transfer that waits for its peer notices that nobody wants it
TRANSFER_FRAME: Final = 64 * 1024  #: of a request for an object, and the answer before its bytes
TRANSFER_IDLE: Final = 20.0  #: connections between nodes are kept so long for the next object
TRANSFER_SPARE: Final = 4  #: and no more of them to one node
