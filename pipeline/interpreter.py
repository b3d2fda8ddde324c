"""How a process of ours looks for garbage.

What belongs here: settings of the interpreter that every process wants, whether a command or a code location of Dagster.
"""

from __future__ import annotations

import atexit
import gc

_NEW_OBJECTS = 50_000


def look_for_garbage_less() -> None:
    """Look after every 50,000 new objects instead of 700, and not at all when the process ends.

    Imports make 350,000 objects that stay: looking through them takes a twentieth of a short command, and the last look,
    at the exit, most of a second. Nothing may count on being finalized then, which Python does not promise either.
    """
    gc.set_threshold(_NEW_OBJECTS)
    atexit.register(gc.freeze)
