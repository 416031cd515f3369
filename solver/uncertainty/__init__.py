"""How sure a decision is."""
