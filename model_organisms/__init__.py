"""Model organisms: small models that are trained from a grammar, with known properties."""
