"""What is pruned: views of leaves, groups of their entries, and rules that name both."""
