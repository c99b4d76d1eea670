"""Serving: one base model and many adapters behind the OpenAI chat-completions interface.

The requests of all adapters are decoded in one batch. `pypeft-fast serve` is the command; the packages of this folder
are those of the extra "serve".
"""
