"""How fast the service is, beside other ways to do the same, on this machine: `make bench`.

Read in this order: `contenders` (who runs against whom), `figures` (one function for each other figure), `machine`
(cores, processes, load), `report` (the table and the plot). `servers` and `expire` are what runs in processes of
their own. Ratios within one run are the result; absolute figures are context.
"""
