"""`python -m launch.search`: the same as `ixjax search`."""

from ixjax.commands.main import main

main("search")
