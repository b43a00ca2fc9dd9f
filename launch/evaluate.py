"""`python -m launch.evaluate`: the same as `ixjax evaluate`."""

from ixjax.commands.main import main

main("evaluate")
