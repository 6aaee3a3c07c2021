"""How well a model draws: measured while it trains, and of finished models beside one another."""
