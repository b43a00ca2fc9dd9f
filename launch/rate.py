"""`python -m launch.rate`: the same as `ixjax rate`."""

from ixjax.commands.main import main

main("rate")
