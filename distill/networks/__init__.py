"""Networks beside the one that a method trains: judges of pictures, discriminators, LoRAs."""
