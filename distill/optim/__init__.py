"""What an update does to weights: optimisers, learning-rate schedules, averages, number formats, non-finite updates."""
