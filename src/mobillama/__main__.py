"""``python -m mobillama`` is the command line; torchrun starts training this way."""

from .cli import main

main()
