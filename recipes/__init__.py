"""Training recipes of the miniature models: everything is drawn, trained and measured here."""
