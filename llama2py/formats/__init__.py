"""Bytes to structures, without any knowledge of models: the readers' and writers' foundation."""
