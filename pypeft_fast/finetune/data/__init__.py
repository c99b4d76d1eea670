"""Conversations to learn from: the forms they come in, the split, their tokens and labels."""
