"""The bounds on everything that is finite, for the smallest machine on Fly: one shared CPU, 256 MB, a slow disk.

Each bound stands here once, beside its reason. Seconds are those of the monotonic clock.
"""

KIB, MIB = 1024, 1024 * 1024

# --- Connections ------------------------------------------------------------------------------------------------------
# Beyond a bound, the connection that has waited longest without a complete head is closed.

CONNECTIONS = 1000  # each costs some kB of memory, and a millisecond of each second to watch
RESERVED_DESCRIPTORS = 96  # of the process' limit: for the database, bodies on disk (at most 64), and the log
CONNECTIONS_OF_AN_ADDRESS = 250  # so that four addresses (IPv6: /64) are needed to take all; not behind a proxy

ACCEPTED_AT_ONCE = 64  # between two looks at the open connections

HEAD_SECONDS = 20  # from the connection, or from the first byte of the head, until the head is complete
IDLE_SECONDS = 75  # between two requests; longer than Fly's proxy keeps an idle connection
SILENT_SECONDS = 60  # a body that does not arrive, or an answer that nobody reads: a train leaves a tunnel in less
ANSWER_SECONDS = 300  # for reading an answer; the contract gives a body as long
LINGER_SECONDS = 30  # after the last answer, for what the client is still sending
LINGER_BYTES = 16 * MIB  # twice the most that a body may have
DRAIN_SECONDS = 20  # how long a stop waits for requests in progress; fly.toml gives it more
DRAIN_INCOMPLETE_SECONDS = 2  # and for a request that is still arriving

# --- Requests ---------------------------------------------------------------------------------------------------------
# Beyond a bound, the answer is 503 `unavailable` with Retry-After, at once.

REQUESTS_OF_AN_ADDRESS = 64  # in progress; a phone needs one, an office behind one address a few
QUEUE_SECONDS = 10  # in a lane; a client waits 30 seconds or more, and the store takes up to 15 of them (see below)
PARSED_BYTES = 8 * KIB  # read at once of a head, what comes with it, and chunks: 64 kB of tiny chunks take 60 ms
READ_BYTES = 256 * KIB  # read at once of a proven body whose length is known, and of one that is discarded
REQUESTS_AHEAD = 2  # requests on a connection that the client sends before it has the first answer

# Lanes: (threads, how many requests may wait).
READS = (1, 1024)  # heads, and what changes nothing; two threads fight for the interpreter and cost a third more
WRITES = (2, 128)  # while one waits for the disk, the next body is decoded
LARGE_WRITES = (1, 32)  # bodies that are on disk: each takes 25 MB while it is decoded

# --- The store --------------------------------------------------------------------------------------------------------
# Beyond a bound, the answer is 503 `unavailable` with Retry-After. A change that had its turn may still happen.

TURN_SECONDS = 5  # until earlier changes are done; each takes some milliseconds on a disk that works
DISK_SECONDS = 10  # for a change; the largest takes a second on a slow disk, and SQLite waits 5 for another's lock
EMPTY_LOG_SECONDS = 5  # after an erasure, until the write-ahead log no longer has what was erased; some share the cost
DAMAGED = 10_000  # accounts, versions and keys that are remembered as damaged: 2 MB; the next ones are not counted
PROBE_SECONDS = 60  # between two writes that show whether the disk still takes them: they cost a sync each
HEALTH_SECONDS = 3  # until a look at the database has ended; there is one each second, so /health is never much older

# --- Bodies and answers -----------------------------------------------------------------------------------------------

SMALL_BODY_BYTES = 1 * MIB  # a larger body waits on disk, beside the database: Fly's /tmp is on its slow root disk
BODIES_IN_MEMORY = 8 * MIB  # of small bodies, in all
BODIES_ON_DISK = 64 * MIB  # of large bodies; what counts is what their heads announce
SHARE_OF_A_USER = 4  # a user may have a quarter of either: two of the largest bodies, or 30 of an ordinary size
SMALL_ANSWER_BYTES = 64 * KIB  # an answer of so many bytes always has room
UNREAD_ANSWERS = 24 * MIB  # in memory until the clients have read them
UNREAD_ANSWERS_OF_AN_ADDRESS = 8 * MIB  # one backup of the largest size is always allowed

# --- The operator's socket --------------------------------------------------------------------------------------------
# One connection is served at a time. Only the server's own user and root can connect.

OPERATOR_WAITING = 4  # connections; there is one operator
OPERATOR_SECONDS = 5  # for a request to arrive, and for the answer to be read
OPERATOR_LINE_BYTES = 16 * KIB  # an account takes 130
OPERATOR_ACCOUNTS = 20  # in a request, so that a stop and whoever waits see an end: each takes some milliseconds

LEASE_SECONDS = 30  # for so long, a run of `migrate` closes the store, and does so again and again
RENEW_SECONDS = 5  # between two times

# --- The metrics ------------------------------------------------------------------------------------------------------
# Past a bound, a connection is cut off: past the number, the oldest one.

METRICS_CONNECTIONS = 4  # Prometheus has one, and an operator who looks has another
METRICS_SECONDS = 5  # for all of a request and its answer, which takes some milliseconds; Prometheus gives up after 10

# --- The copy in a bucket ---------------------------------------------------------------------------------------------
# Nothing that answers requests waits for the bucket.

COPIERS = 2  # threads; each has at most one version in memory, and one waits while the other has a large one
BUCKET_CHANGES = 10_000  # accounts that wait to be copied: 2 MB. The next ones are found by a comparison
BUCKET_CONNECT_SECONDS = 5
BUCKET_REQUEST_SECONDS = 30  # 5 MiB in that time need 170 kB a second
BUCKET_OWNER_SECONDS = 1  # for so long, it is known who may write
BUCKET_PAUSE_SECONDS = (1, 60)  # after a failure: the first pause, which doubles, and the longest one
BUCKET_STOP_SECONDS = 4  # how long a stop waits for the last changes to be copied
FETCHED_AT_ONCE = 16  # by a restoration: a request takes 30 ms, and brings 5 MiB at most

# --- The log ----------------------------------------------------------------------------------------------------------
# Beyond the bound, lines are lost and counted.

LOG_BYTES = 2_500_000  # of lines that nobody has read yet: about 10,000 requests
STOP_LOG_SECONDS = 1  # how long a stop waits for whoever reads the last lines
ABORT_LOG_SECONDS = 0.2  # the same, after a second signal, which ends the server at once

# --- The database, if DATABASE_URL is set -----------------------------------------------------------------------------
# Beyond a bound, the answer is 503 `unavailable` with Retry-After. A change that was being committed may have happened.

DATABASE_CONNECTIONS = 12  # of a server: one for each reader, two for each thread of the other lanes, two for the rest
DATABASE_READERS = 4  # threads in place of the one of READS, since they mostly wait for the database
DATABASE_CONNECT_SECONDS = 3  # for a new connection, and before a connection without an answer is given up
DATABASE_LOOK_SECONDS = 2  # until the look of each second has a connection: less than HEALTH_SECONDS, to tell why
DATABASE_STATEMENT_SECONDS = 8  # for a statement; 5 MiB take less than one
DATABASE_ANSWER_SECONDS = 9  # for any answer, if the database does not bound it: a commit that waits for a replica
DATABASE_LOCK_SECONDS = 5  # until somebody else has finished with an account
DATABASE_IDLE_SECONDS = 6  # of a transaction whose server is silent: then the database gives others what it held
DATABASE_ATTEMPTS = 6  # of a change that others were faster with
