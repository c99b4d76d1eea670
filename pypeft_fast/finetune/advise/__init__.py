"""Which target_modules to train: what each choice costs, what publications found, and a probe on the user's data."""
