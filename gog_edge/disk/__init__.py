"""What is kept on disk: whole files, leftovers of killed processes, stamps of checked files, tensors, folders."""
