"""The method: roles, prompts, the reasoning tree, credit and rounds of training."""
