"""Laws that any guidance method can be tested against, and the tiny models to test it on."""
