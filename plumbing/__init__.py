"""What every room stands on: command line, processes, threads, files, errors."""

import os

# An idle thread of OpenMP's spins for some milliseconds before it sleeps, on a core that others want: numba's part of
# an SAE's step, a DataLoader's worker, another program. This lets it sleep after a tenth of a millisecond. torch reads
# it when it is imported, and every script imports this room before that.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
