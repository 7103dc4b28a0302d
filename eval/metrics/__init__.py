"""Metrics, pure: texts in, numbers out, nothing read or written."""
