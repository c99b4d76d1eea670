"""Adapters: methods and configs, target layers, files of an adapter, and merging."""
