"""halfulp: low-precision optimizer states that do not lose updates."""

__version__ = "0.1.0"
