"""The built-in agent: a model of pydantic-ai with the notebook's tools."""
