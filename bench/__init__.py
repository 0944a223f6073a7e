"""How fast c42c is, compared with other servers that cache, on this machine: `make
bench`.

`contenders` says who is compared, `figures` has one function for each other figure,
`machine` starts servers and loads them, `report` writes the page and the plot.
`servers` and `expire` run in processes of their own.
"""
