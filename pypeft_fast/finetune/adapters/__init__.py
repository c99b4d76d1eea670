"""Adapters: the methods and their configs, target layers, an adapter's files, and merging."""
