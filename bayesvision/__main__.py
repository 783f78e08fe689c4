"""`python -m bayesvision`: the command, where it is not on the PATH."""

from bayesvision.cli import main

main(prog_name="bayesvision")
