"""Helpers shared by several test modules: oracles, lists of cases, runs."""
