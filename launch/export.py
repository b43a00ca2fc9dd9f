"""`python -m launch.export`: the same as `ixjax export`."""

from ixjax.commands.main import main

main("export")
