"""Dialogues with a model that was trained on them, and the templates that write them down."""
