"""A soak test: traffic, faults and outages for minutes on end, with every answer
checked. `python -m tests.soak`.
"""
