"""The version of the package, for whoever may not import its face."""

__version__ = "0.1.0"
