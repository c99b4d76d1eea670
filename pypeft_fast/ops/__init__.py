"""The ops: one file each, with the schema, the check, the reference and the binding of every kernel."""
