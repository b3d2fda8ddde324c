"""The work of each asset, without the orchestrator: fetch, chunk, embed, load, remove.

A stage takes an Export and file ids, does only what is needed (its output's key differs from what it would be made from)
and answers a StageReport. It can be run again at any time.
"""
