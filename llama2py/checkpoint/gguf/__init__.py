"""GGUF, the format of llama.cpp: reader and writer."""
