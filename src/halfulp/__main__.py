"""``python -m halfulp``: the command line."""

from halfulp.cli import main

if __name__ == "__main__":
    main()
