"""What a stage did, as Dagster metadata: counts, a per-file table, a histogram of chunk sizes as an image."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from pipeline.stages.report import StageReport

_TABLE_ROWS = 200
_BINS = 24
_WIDTH, _HEIGHT = 480, 160
"""Of the histogram, in pixels."""


def report_metadata(report: StageReport) -> dict[str, Any]:
    """Everything a report says, tens of kilobytes: for one event a run, never for one a file."""
    metadata: dict[str, Any] = {
        "files_in_run": report.files,
        "files_worked_on": report.worked,
        "files_already_current": report.skipped,
        "files_failed": len(report.failures),
        "seconds": dg.MetadataValue.float(round(report.seconds, 3)),
    }
    metadata |= dict(sorted(report.numbers.items()))
    if report.held_elsewhere:
        metadata["files_held_by_another_run"] = len(report.held_elsewhere)
    if report.not_ready:
        metadata["files_not_ready"] = len(report.not_ready)
        metadata["not_ready"] = _reasons(report, report.not_ready)
    if report.sizes:
        metadata["chunk_sizes"] = dg.MetadataValue.md(histogram(report.sizes))
    if report.rows:
        metadata["files"] = table(report.rows)
    if report.failures:
        metadata["failures"] = _reasons(report, report.failures)
    return metadata


def _reasons(report: StageReport, reasons: Mapping[str, str]) -> dg.TableMetadataValue:
    return table({"file": report.names.get(f, ""), "file_id": f, "reason": reason} for f, reason in reasons.items())


def table(rows: Iterable[Mapping[str, Any]]) -> dg.TableMetadataValue:
    """The first of these rows, of which there is at least one."""
    return dg.MetadataValue.table([dg.TableRecord(dict(row)) for row in islice(rows, _TABLE_ROWS)])


def column_schema(schema: Sequence[pa.Field]) -> dg.TableSchema:
    """An Arrow schema as Dagster shows it."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(field.name, _type_name(field.type), constraints=dg.TableColumnConstraints(nullable=field.nullable))
            for field in schema
        ]
    )


def _type_name(kind: pa.DataType) -> str:
    """Without the dimension of vectors, which only a loaded model knows."""
    return f"fixed_size_list<item: {kind.value_type}>" if pa.types.is_fixed_size_list(kind) else str(kind)


def histogram(values: Sequence[int]) -> str:
    """A Markdown image: how many chunks have how many tokens."""
    counts, edges = np.histogram(values, bins=_BINS)
    image = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    base, top = _HEIGHT - 22, 18
    step = _WIDTH / _BINS
    for position, count in enumerate(counts):
        bar = (base - top) * int(count) / max(int(counts.max()), 1)
        draw.rectangle((position * step + 1, base - bar, (position + 1) * step - 1, base), fill="#4f6bed")
    draw.line((0, base, _WIDTH, base), fill="#555555")
    draw.text((2, base + 5), str(int(edges[0])), fill="#333333")
    draw.text((_WIDTH - 34, base + 5), str(int(edges[-1])), fill="#333333")
    draw.text((2, 2), f"{len(values)} chunks by tokens, median {int(np.median(values))}", fill="#333333")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return f"![chunk sizes](data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()})"
