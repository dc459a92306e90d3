"""NetAdapt: one group of units after another gives a little of what the network costs."""
