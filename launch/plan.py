"""`python -m launch.plan`: the same as `ixjax plan`."""

from ixjax.commands.main import main

main("plan")
