"""How a state is said, read and checked: prompts, actions, claims."""
