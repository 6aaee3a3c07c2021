"""Several prompts or several models in one picture: regions by mask, unite and conquer, collaborative diffusion."""
