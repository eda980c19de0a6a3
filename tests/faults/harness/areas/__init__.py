"""What is damaged, one file an area. An area says what each trial must end in, and tries."""
