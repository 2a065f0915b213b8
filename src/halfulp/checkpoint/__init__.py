"""Checkpoints: conversion between formats and libraries, files, reading other libraries' files, and a self-test."""
