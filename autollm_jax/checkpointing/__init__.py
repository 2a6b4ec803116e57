"""Save, restore, resume."""
