"""`python -m launch.prepare`: the same as `ixjax prepare`."""

from ixjax.commands.main import main

main("prepare")
