"""The Qdrant sink, over HTTP against the emulator and in local mode."""
