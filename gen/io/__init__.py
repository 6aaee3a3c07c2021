"""Files in and out: weights, pictures, folders, digests, and the checks of what a user gives."""
