"""Answers shared with other instances through Redis."""
