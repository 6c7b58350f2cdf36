"""Aggregation rules: pure functions from the round's updates to the next global model, one file per rule."""
