"""Buckets that refuse what real ones may."""

from __future__ import annotations

import json
import os

import boto3


def forbid_deletes(bucket: str) -> None:
    """As a policy of the bucket does. Of many objects deleted in one request each is refused in an answer that is a success."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL") or os.environ["AWS_ENDPOINT"]
    denied = {"Effect": "Deny", "Principal": "*", "Action": "s3:DeleteObject", "Resource": f"arn:aws:s3:::{bucket}/*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [denied]})
    boto3.client("s3", endpoint_url=endpoint).put_bucket_policy(Bucket=bucket, Policy=policy)
