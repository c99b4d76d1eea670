"""Training data: the formats of conversations, the split, tokens and labels."""
