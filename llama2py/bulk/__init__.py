"""Bulk generation: a file of rows becomes shards of texts, the same bytes on every run."""
