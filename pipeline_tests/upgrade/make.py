"""``python -m pipeline_tests.upgrade.make NAME``: keep a home as this version leaves it, for every later version to open.

Run it when a version is released, or before a change of anything that is stored. What lies in ``homes`` is never made anew.
"""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.local_cloud.documents import DocumentFolder
from pipeline.local_cloud.state_folder import state_folder
from pipeline_tests.command_line import SYNC, invoke
from pipeline_tests.world import World, open_world

HOMES = Path(__file__).parent / "homes"
ERASED = "erased.md"


def page(name: str, parts: int) -> str:
    return f"# {name}\n\n" + "\n\n".join(f"## Part {n}\n\n" + f"The gauge of {name} reads {n} metres. " * 9 for n in range(parts))


def live(world: World) -> None:
    """What a home goes through: a first sync, an edit, a removal, an erasure."""
    for name in ("edited.md", "kept.md", "removed.md", ERASED):
        world.write(name, page(name, 4))
    world.write("kept.md.meta.json", '{"team": "gauges"}')
    world.write("empty.md", "")
    invoke(*SYNC)
    world.write("edited.md", page("edited.md", 5))
    world.remove("removed.md")
    invoke(*SYNC)
    invoke("erase", ERASED)


def make(name: str) -> None:
    with TemporaryDirectory() as root:
        with open_world(Path(root)) as world:
            live(world)
        with tarfile.open(HOMES / f"{name}.tar.xz", "x:xz") as archive:
            for kept in ("documents", "home"):
                archive.add(Path(root) / kept, kept)
            # Where any folder's was kept before each had its own: this one will be unpacked elsewhere.
            archive.add(state_folder(Path(root) / "cloud", DocumentFolder(f"{root}/documents", {})), "cloud")


if __name__ == "__main__":
    make(sys.argv[1])
