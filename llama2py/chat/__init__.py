"""Dialogues with a chat model, and the templates that format their turns."""
