"""Text to tokens and back, and the files that vocabularies are stored in."""
