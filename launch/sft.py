"""`python -m launch.sft`: the same as `ixjax sft`."""

from ixjax.commands.main import main

main("sft")
