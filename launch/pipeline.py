"""`python -m launch.pipeline`: the same as `ixjax pipeline`."""

from ixjax.commands.main import main

main("pipeline")
