"""What a run says of its work, as people see it in the UI."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

from PIL import Image

from pipeline_tests.world import open_world

BAR = (0x4F, 0x6B, 0xED)


def test_a_run_shows_each_file_it_has_cut_and_a_picture_of_how_large_the_chunks_are(tmp_path: Path) -> None:
    with open_world(tmp_path) as world:
        world.write("short.md", "# Short\n\nA few words.\n")
        world.write("long.md", "# Long\n\n" + "A sentence about river gauges and of nothing else. " * 60)
        assert world.sync().ok
        told = world.numbers("chunks")
    assert {row.data["file"] for row in told["files"].records} == {"short.md", "long.md"}
    before, _, picture = told["chunk_sizes"].rstrip(")").partition("base64,")
    assert before == "![chunk sizes](data:image/png;"
    image = Image.open(BytesIO(base64.b64decode(picture))).convert("RGB")
    above_the_axis = [image.getpixel((x, image.height - 24)) == BAR for x in range(image.width)]
    assert above_the_axis[2]
    assert above_the_axis[-3]
    assert not all(above_the_axis)
