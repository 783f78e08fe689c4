"""`python -m bayesvision.cli`."""

from bayesvision.cli import main

main(prog_name="bayesvision")
