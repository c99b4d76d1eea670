"""Adapters on whole models: Hugging Face PEFT with this package's layers in it. Only this folder imports peft."""
