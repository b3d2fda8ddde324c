"""Settings of the source.

What belongs here: what a user may write in an export's YAML about LlamaCloud. The API key and the base URL are not among
them: they come from the environment (``LLAMA_CLOUD_API_KEY``, ``LLAMA_CLOUD_BASE_URL``).
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.llama_cloud.normalise import DEFAULT_MAX_PAYLOAD_BYTES

MAX_PAGE_SIZE = 1000


class LlamaCloudSettings(BaseModel):
    """Which index to read, and how gently."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    index_id: str | None = Field(
        default=None,
        min_length=1,
        description="Its id or its export_config_id. Without it and index_name: the project's only index.",
    )
    index_name: str | None = Field(default=None, min_length=1, description="The index's exact name, instead of index_id.")
    project_id: str | None = Field(default=None, min_length=1, description="Default: the API key's own project.")
    payload_directory: Literal["auto", "output", "source"] = Field(
        default="auto",
        description="Which directory of the index holds the payloads. auto: the output directory if there is one, else source.",
    )
    page_size: int = Field(
        default=MAX_PAGE_SIZE, ge=1, le=MAX_PAGE_SIZE, description="Files, or indexes, asked for in one listing request."
    )
    requests_per_second: float | None = Field(
        default=10.0, gt=0, description="Upper limit of API requests; downloads of presigned URLs do not count. None: no limit."
    )
    max_concurrent_downloads: int = Field(default=16, ge=1, le=256, description="Payloads on their way at once.")
    max_payload_bytes: int = Field(default=DEFAULT_MAX_PAYLOAD_BYTES, ge=1, description="Of one payload, once decompressed.")
    allow_private_addresses: bool = Field(
        default=False,
        description="Let presigned URLs point into private networks. The API's own host may always be reached.",
    )

    @model_validator(mode="after")
    def _one_way_to_name_the_index(self) -> Self:
        if self.index_id is not None and self.index_name is not None:
            raise ValueError("set index_id or index_name, not both; neither means the project's only index")
        return self
