"""A soak test: traffic, faults and outages, with every answer checked.

It takes minutes. `python -m tests.soak` runs it.
"""
