"""A picture begun by one model and finished by another, at a noise level between them, as SDXL's base and refiner do."""
