"""The source: LlamaCloud Index V2 through the real SDK, and the normaliser of its payloads."""
