"""What a run will take, by arithmetic: batches, parameters, memory of a rank, disk."""
