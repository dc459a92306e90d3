"""What is stored of a pruned weight, and how it is packed."""
