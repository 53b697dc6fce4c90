"""What training is made of: queries and batches, views, losses, optimizers."""
