"""``/_admin/faults``: mounted only where fault injection is allowed."""

from __future__ import annotations

from fastapi import APIRouter

from pipeline.local_cloud.faults import Faults
from pipeline.local_cloud.wire import CloudPart

router = APIRouter(prefix="/_admin/faults")


@router.get("")
async def get_faults(cloud: CloudPart) -> Faults:
    return cloud.faults.current


@router.put("")
async def set_faults(cloud: CloudPart, faults: Faults) -> Faults:
    """Replaces every fault; an empty object ends them all."""
    cloud.faults.set(faults)
    return faults
