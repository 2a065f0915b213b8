"""Checkpoints: moving one between formats and libraries, files, reading others', and a self-test."""
