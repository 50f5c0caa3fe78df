"""How close clips are to dense ones, beside other methods."""
