"""Which entries go, and when: scores, schedules, choosers, and the transforms of optax."""
