"""Offline: raw corpora to shards. The layout of a raw corpus folder stands in docs/data.md."""
