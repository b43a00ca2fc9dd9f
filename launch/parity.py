"""`python -m launch.parity`: the same as `ixjax parity`."""

from ixjax.commands.main import main

main("parity")
