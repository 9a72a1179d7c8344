"""Hugging Face's model directories: reader and writer."""
