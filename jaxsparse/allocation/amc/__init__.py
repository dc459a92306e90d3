"""AMC: an agent chooses how much of each layer stays, one after the other."""
