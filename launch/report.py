"""`python -m launch.report`: the same as `ixjax report`."""

from ixjax.commands.main import main

main("report")
