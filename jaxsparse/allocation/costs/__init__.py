"""What the layers of a traced program cost: multiplications, bytes and measured time."""
