"""Runs and questions in a terminal."""
