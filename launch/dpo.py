"""`python -m launch.dpo`: the same as `ixjax dpo`."""

from ixjax.commands.main import main

main("dpo")
