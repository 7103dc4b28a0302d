"""Models leave and enter here, with every tensor accounted for."""
