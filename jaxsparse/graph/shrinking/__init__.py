"""Channels that masks leave empty, removed."""
