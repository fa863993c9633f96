"""One plugin of each kind, as another package offers them."""
