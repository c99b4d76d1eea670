"""torch.autograd.Functions made of the ops, and the functions that users call."""
