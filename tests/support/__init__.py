"""Helpers that several test modules share: oracles, lists of cases, runs."""
