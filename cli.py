"""Starts the command line from a checkout: ``python cli.py COMMAND``."""

from manyviews.main import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
