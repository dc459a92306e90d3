"""Heads and neurons: what a mask keeps of them, resolved to whole ones."""
