"""Personas: where their texts come from, what they do to a preference, and how the model carries it."""
