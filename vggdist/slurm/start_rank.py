"""Starts a rank's Python with the signals blocked that would end it before it knows what they mean.

    python -IS start_rank.py ARGUMENTS OF PYTHON

A rank imports for seconds before its handlers are there (`training/signals.py`). What comes
meanwhile waits, and is delivered once they are; a job would end with it, for good. A shell can
ignore a signal but not make it wait, and GNU's `env --block-signal` is younger than many clusters.
Nothing of the project is imported here: only while Python itself starts, some 20 ms, does a signal
still end the rank.
"""

import os
import signal
import sys

if __name__ == "__main__":
    stops = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
