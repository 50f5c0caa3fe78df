"""How long one attention call takes, beside other methods."""
