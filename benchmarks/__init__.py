"""How fast the product is, beside what its users would otherwise run: ``make bench``."""
