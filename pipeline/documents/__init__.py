"""Pure functions from parsed pages to chunks: pages -> Document (text and page spans) -> Chunks."""
