"""How good a ranking is: one value a query and metric."""
