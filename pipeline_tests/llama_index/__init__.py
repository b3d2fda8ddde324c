"""What needs LlamaIndex: run in an environment of its own, by ``make test-llama-index``."""
