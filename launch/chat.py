"""`python -m launch.chat`: the same as `ixjax chat`."""

from ixjax.commands.main import main

main("chat")
