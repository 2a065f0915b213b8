"""The command line, as ``python -m halfulp``."""

from halfulp.cli import main

if __name__ == "__main__":
    main()
