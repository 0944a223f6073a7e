"""Compares the speed of c42c with that of other caching servers: `make bench`.

`contenders` says who is compared, `figures` has one function for each other figure,
`machine` starts servers and loads them, `report` writes the page and the plot.
`servers` and `expire` run in processes of their own.
"""
