"""A run in words, Markdown and HTML."""
