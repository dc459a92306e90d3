"""AMC: an agent that chooses how much of each layer stays, one after the other."""
