"""``fastembed_alone.py MODEL_FOLDER TEXTS VECTORS``: the texts of a JSON list through fastembed as its users call it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from fastembed import TextEmbedding


def main() -> None:
    folder, texts, vectors = sys.argv[1:]
    model = TextEmbedding("sentence-transformers/all-MiniLM-L6-v2", specific_model_path=folder)
    np.save(vectors, np.stack(list(model.embed(json.loads(Path(texts).read_text(encoding="utf-8"))))))


if __name__ == "__main__":
    main()
