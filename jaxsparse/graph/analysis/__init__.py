"""What the channels of a traced program are."""
