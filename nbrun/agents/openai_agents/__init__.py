"""Agents of OpenAI's Agents SDK."""
