"""Runs one attempt, and stops it."""
