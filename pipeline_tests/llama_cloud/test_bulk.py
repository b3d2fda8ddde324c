import asyncio
from collections.abc import AsyncGenerator

from pipeline.llama_cloud.bulk import in_completion_order
from pipeline.llama_cloud.listing import FileEntry
from pipeline.llama_cloud.models import DirectoryFile


async def test_urls_are_asked_for_shortly_before_they_are_used_and_never_late() -> None:
    asked = fetched = 0
    furthest_ahead = 0

    async def pages() -> AsyncGenerator[list[FileEntry]]:
        nonlocal asked
        for page in range(20):
            asked += 200
            yield [FileEntry(DirectoryFile(id=f"{page}-{number}", display_name="", file_id=None), None) for number in range(200)]

    async def fetch(entry: FileEntry) -> str:
        nonlocal fetched, furthest_ahead
        for _ in range(3):
            await asyncio.sleep(0)
        furthest_ahead = max(furthest_ahead, asked - fetched)
        assert asked - fetched > 16 or asked == 4000  # nobody waits for a page while there is one to ask for
        fetched += 1
        return entry.file.id

    results = [result async for result in in_completion_order(pages(), fetch, limit=16)]

    assert len(set(results)) == len(results) == 4000
    assert furthest_ahead < 1000
