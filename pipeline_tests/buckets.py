"""Buckets that refuse what real ones may."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

import boto3


@contextmanager
def deletes_forbidden(bucket: str) -> Iterator[None]:
    """As a policy of the bucket does. Of many objects deleted in one request each is refused in an answer that is a success. The
    policy goes at the end: moto's buckets outlive its server."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL") or os.environ["AWS_ENDPOINT"]
    denied = {"Effect": "Deny", "Principal": "*", "Action": "s3:DeleteObject", "Resource": f"arn:aws:s3:::{bucket}/*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [denied]})
    client = boto3.client("s3", endpoint_url=endpoint)
    client.put_bucket_policy(Bucket=bucket, Policy=policy)
    try:
        yield
    finally:
        client.delete_bucket_policy(Bucket=bucket)
