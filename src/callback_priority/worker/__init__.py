"""What runs a callback: on a worker or in the triggerer."""
